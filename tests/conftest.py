"""Shared fixtures: real data and weights, a quiet, offline ultralytics, an sshd on loopback, a browser."""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Before ultralytics is imported anywhere: it must neither install packages nor write into the user's settings.
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("EDGE_DISTILL_CACHE", "off")  # nor into the user's cache of opened models
# A shell's background job ignores Ctrl-C, and so would every program that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent


def edge_data() -> Path:
    """Folder with real data and weights: $EDGE_DATA, or `shared` beside the checkout."""
    return Path(os.environ.get("EDGE_DATA", REPOSITORY.parent / "shared")).resolve()


def _need(relative: str) -> Path:
    path = edge_data() / relative
    if not path.exists():
        pytest.skip(f"real data is absent: {path} does not exist (set EDGE_DATA)")
    return path


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """Folder of the COCO sample, with coco-mini.yaml."""
    return _need("data/coco-mini")


@pytest.fixture(scope="session")
def cifar10_mini() -> Path:
    """Folder of the CIFAR-10 sample: train/ and test/ of class folders."""
    return _need("data/cifar10-mini")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """Folder of the blood-cell data set, with bccd.yaml."""
    return _need("data/bccd")


@pytest.fixture(scope="session")
def coco_weights() -> Path:
    """A COCO-trained YOLOv8-n checkpoint."""
    return _need("weights/yolov8n-coco.pt")


@dataclass(frozen=True)
class Loopback:
    """A real sshd on this machine that lets this user in.

    Attributes:
        host: alias that `ssh_config` knows.
        port: on 127.0.0.1.
        ssh_config: for `ssh -F`; checks the host key against `known_hosts`.
        known_hosts: holds the server's key.
        key: private key that the server accepts.
    """

    host: str
    port: int
    ssh_config: Path
    known_hosts: Path
    key: Path

    def config(self, path: Path, **changed: str) -> Path:
        """Write a variant of the SSH configuration, e.g. with another `Port`, and return its path."""
        options = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": getpass.getuser(),
            "IdentityFile": f'"{self.key}"',
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": f'"{self.known_hosts}"',
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            **changed,
        }
        path.write_text(f"Host {self.host}\n" + "".join(f"  {key} {value}\n" for key, value in options.items()))
        return path


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A running sshd; skips where OpenSSH's server is not installed."""
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("no sshd: apt-get install openssh-server openssh-client")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where Debian's sshd gives up its privileges
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": folder / "pid",
        "UsePAM": "no",
        "StrictModes": "no",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "MaxStartups": "100:30:200",
    }
    config = folder / "sshd_config"
    config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    host_key = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program, "-D", "-e", "-f", config], stdout=log, stderr=log)
    try:
        _wait_for_banner(port, server, folder / "log")
        loopback = Loopback("edge-loopback", port, folder / "ssh_config", folder / "known_hosts", folder / "user_key")
        loopback.config(loopback.ssh_config)
        yield loopback
    finally:
        server.terminate()
        server.wait(10)


def _wait_for_banner(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            time.sleep(0.05)
    server.kill()
    pytest.fail(f"sshd did not start: {log.read_text()}")


@dataclass(frozen=True)
class DeployedStudent:
    """A tiny student as distill leaves it, on a data set that it detects perfectly.

    Attributes:
        run: run folder, with `student/student.pt` and `student/student.json`.
        data_yaml: training and validation images; the labels are the student's own best detections.
        imgsz: side of its input in pixels.
    """

    run: Path
    data_yaml: Path
    imgsz: int

    @property
    def checkpoint(self) -> Path:
        """The `.pt` file."""
        return self.run / "student" / "student.pt"


@pytest.fixture(scope="session")
def deployed_student(tmp_path_factory: pytest.TempPathFactory) -> DeployedStudent:
    """A YOLOv8-n with random but lively weights and three classes, 96 px; 8 training and 6 validation images."""
    pytest.importorskip("ultralytics", reason="deploying needs the [train] extra")
    import torch

    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("deployed")
    data_yaml = _drawn_data(root / "data")
    run = root / "runs" / "distill" / "tiny"
    (run / "student").mkdir(parents=True)
    _lively_checkpoint(run / "student" / "student.pt", sorted((root / "data/images/train").iterdir()))
    student = DeployedStudent(run, data_yaml, 96)
    _label_with_own_detections(student)
    record = {
        "schema": 1,
        "task": "detect",
        "student": {"file": "student.pt", "sha256": hashlib.sha256(student.checkpoint.read_bytes()).hexdigest()},
        "teacher": {"file": "teacher.pt", "sha256": "0" * 64, "parameters": 1},
        "data": {"yaml": str(data_yaml)},
        "imgsz": 96,
        "losses": {"response": 1.0},
    }
    (run / "student" / "student.json").write_text(json.dumps(record))
    return student


@pytest.fixture(scope="session")
def bundles(deployed_student: DeployedStudent, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The tiny student's bundle for an engine and a precision, made once by the command line, verified."""
    from importlib import import_module

    from deploy import tflite

    root = tmp_path_factory.mktemp("bundles")
    converted: list[bytes] = []
    convert = tflite._convert

    def convert_once(job: tflite.Job) -> bytes:
        if not converted:
            converted.append(convert(job))
        return converted[0]

    def bundle(engine: str, precision: str) -> Path:
        out = root / f"{engine}-{precision}"
        if not out.exists():
            flags = [f"--{precision}"] if precision in ("fp16", "int8") else ["--precision", precision]
            arguments = ["--student", str(deployed_student.run), "--out", str(out), "--max-drop", "100", *flags]
            with pytest.MonkeyPatch.context() as patch:
                # Converting takes most of the time, and what comes out is the same for every precision of this student.
                patch.setattr(tflite, "_convert", convert_once)
                assert import_module(f"deploy.{engine}").main(arguments) == 0
        return out

    return bundle


def _drawn_data(root: Path) -> Path:
    """Rectangles and discs on noise, each image of its own size and colours; labels follow later."""
    import numpy as np
    from PIL import Image, ImageDraw

    random = np.random.default_rng(5)
    for split, count in (("train", 8), ("val", 6)):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for index in range(count):
            width, height = (int(side) for side in random.integers(70, 160, 2))
            noise = random.normal(random.integers(40, 200), 30, (height, width, 3))
            image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
            draw = ImageDraw.Draw(image)
            for shape in range(4):
                x, y, side = random.integers(0, width - 30), random.integers(0, height - 30), random.integers(15, 60)
                colour = tuple(int(value) for value in random.integers(0, 256, 3))
                (draw.rectangle if shape % 2 else draw.ellipse)((x, y, x + side, y + side), fill=colour)
            image.save(root / "images" / split / f"{index}.png")
    path = root / "drawn.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: {0: red, 1: green, 2: blue}\n")
    return path


def _lively_checkpoint(path: Path, images: list[Path]) -> None:
    """ultralytics' own start weights fade to nothing on the way; with these every output tells `images` apart."""
    import torch
    from ultralytics import __version__
    from ultralytics.nn.tasks import DetectionModel

    from deploy.calibration import network_input

    torch.manual_seed(0)
    model = DetectionModel("yolov8n.yaml", nc=3, verbose=False).eval().requires_grad_(False)
    model.names = {0: "red", 1: "green", 2: "blue"}
    model.args = {}
    for module in model.model[:-1].modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    features = model(torch.cat([torch.from_numpy(network_input(image, 96)) for image in images]))[1]["feats"]
    head = model.model[-1]
    for level, box, classes in zip(features, head.cv2, head.cv3, strict=True):
        for branch, bias in ((box, 0.0), (classes, -3.0)):
            branch[-1].weight.div_(branch(level).std())
            branch[-1].bias.fill_(bias)
    model.half()
    torch.save({"model": model, "ema": None, "train_args": {"imgsz": 96}, "version": __version__}, path)


def _label_with_own_detections(student: DeployedStudent) -> None:
    """The best detections become the truth, so that the float student scores 1 and any loss is the bundle's."""
    import numpy as np

    from deploy.graph import load_graph
    from deploy.runtime import read_image
    from deploy.verify import checkpoint_detector

    detector = checkpoint_detector(load_graph(student.checkpoint), student.imgsz)
    for split in ("train", "val"):
        images = sorted((student.data_yaml.parent / "images" / split).iterdir())
        found = [detector(image) for image in images]
        threshold = np.sort(np.concatenate([one.scores for one in found]))[-6 * len(images)]
        for image, one in zip(images, found, strict=True):
            height, width = read_image(image).shape[:2]
            scale = np.array([width, height, width, height])
            lines = []
            for box, score, class_id in zip(one.boxes_xyxy, one.scores, one.class_ids, strict=True):
                if score >= threshold:
                    fractions = np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]]) / scale
                    lines.append(" ".join([str(class_id), *(f"{value:.9f}" for value in fractions)]))
            label = student.data_yaml.parent / "labels" / split / f"{image.stem}.txt"
            label.write_text("\n".join(lines))


BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome-headless-shell")
PATIENCE_S = 120.0


class Browser:
    """Headless Chromium, spoken to over two pipes by its DevTools protocol: no other program is needed."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, from_us = os.pipe()
        to_us, from_browser = os.pipe()
        # The protocol wants descriptors 3 and 4; a shell puts them there.
        flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run"
        script = f'exec "$0" {flags} --remote-debugging-pipe "--user-data-dir=$1" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", script, program, str(profile)],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._out, self._in = from_us, to_us
        self._unread = b""
        self._number = 0
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    def open(self, page: Path, width: int = 1280, height: int = 900, phone: bool = False) -> None:
        """Show a page in a window of that many CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.complaints.clear()
        self.call("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + PATIENCE_S
        while self.evaluate("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < deadline, "the page never loaded"
            time.sleep(0.05)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def key(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        fields = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **fields, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Move or press the mouse at a place in the window."""
        pressed = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def screenshot(self) -> bytes:
        """A picture of the whole page."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def end(self) -> None:
        """Close it."""
        with suppress(OSError, AssertionError):
            self._session = None
            self.call("Browser.close")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._in], [], [], PATIENCE_S)
            chunk = os.read(self._in, 1 << 20) if ready else b""
            assert chunk, "the browser fell silent"
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if message.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(message["params"]))
        return message


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; skips where there is none."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium to open pages in: apt-get install --no-install-recommends chromium")
    started = Browser(program, tmp_path_factory.mktemp("profile"))
    yield started
    started.end()
