"""The examples and the documentation's code, run as a user runs them."""

from __future__ import annotations

import csv
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ultralytics", reason="making bundles needs the [train] extra")

from deploy.runtime import Detector, read_image
from deploy.runtime.recording import VideoWriter
from deploy.runtime.sources import VideoFile

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
DOCUMENT = REPOSITORY / "docs/runtime.md"
PATIENCE_S = 60
MOST_SLOTS = 8  # of the service


@pytest.fixture(scope="module")
def bundle(bundles: Callable[[str, str], Path]) -> Path:
    return bundles("onnx", "fp32")


@pytest.fixture(scope="module")
def images(deployed_student) -> list[Path]:
    return sorted((deployed_student.data_yaml.parent / "images/val").iterdir())


def _run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / program), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_detect_image_prints_and_draws_what_the_detector_finds(
    bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    done = _run("detect_image.py", bundle, images[0], "--conf", 0.1, "--out", tmp_path / "drawn.png")
    assert done.returncode == 0, done.stderr
    found = Detector(bundle, conf=0.1)(images[0])
    names = ("red", "green", "blue")
    expected = [f"{names[i]} {score:.2f} from" for i, score in zip(found.class_ids, found.scores, strict=True)]
    assert len(expected) > 0
    assert [line.split(" (")[0] for line in done.stdout.splitlines()] == expected
    drawn, source = read_image(tmp_path / "drawn.png"), read_image(images[0])
    assert drawn.shape == source.shape
    assert (drawn != source).any()
    refused = _run("detect_image.py", bundle, tmp_path / "none.jpg")
    assert refused.returncode == 1
    assert refused.stderr == f"error: no image {tmp_path / 'none.jpg'}: check the path\n"
    before = (tmp_path / "drawn.png").read_bytes()
    refused = _run("detect_image.py", bundle, images[0], "--out", tmp_path / "drawn.png")
    assert refused.returncode == 1
    assert "already exists" in refused.stderr
    assert (tmp_path / "drawn.png").read_bytes() == before


def test_detect_folder_counts_and_tells_of_an_image_it_cannot_read(
    bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    for index, image in enumerate(images[:4]):
        (tmp_path / f"a, {index}.png").write_bytes(image.read_bytes()[: 50 if index == 1 else None])
    done = _run("detect_folder.py", bundle, tmp_path, "--conf", 0.1)
    assert done.returncode == 1
    rows = list(csv.reader(done.stdout.splitlines()))
    assert rows[0] == ["image", "class", "count"]
    detector = Detector(bundle, conf=0.1)
    for index in (0, 2, 3):
        counts = {name: int(count) for path, name, count in rows[1:] if Path(path).name == f"a, {index}.png"}
        assert sum(counts.values()) == len(detector(tmp_path / f"a, {index}.png"))
    assert "1.png" in done.stderr
    assert "3 of 4 frames" in done.stderr


def _video(path: Path, images: list[Path]) -> Path:
    pytest.importorskip("cv2", reason="videos need OpenCV")
    writer = VideoWriter(path, 10.0)
    for image in images * 2:
        writer.write(np.asarray(Image.open(image).convert("RGB").resize((128, 96))))
    writer.close()
    return path


def test_camera_loop_tells_of_every_change_in_what_is_seen(bundle: Path, images: list[Path], tmp_path: Path) -> None:
    video = _video(tmp_path / "a.mp4", images)  # in place of a camera: the same loop
    done = _run("camera_loop.py", bundle, "--camera", video, "--conf", 0.25)
    assert done.returncode == 0, done.stderr
    detector, seen, expected = Detector(bundle, conf=0.25), set(), []
    for frame in VideoFile(video):
        now = {detector.manifest.class_names[class_id] for class_id in detector(frame.pixels).class_ids}
        expected += [f"{frame.timestamp_s:8.2f} s  {'+' if name in now else '-'} {name}" for name in sorted(now ^ seen)]
        seen = now
    assert len(expected) > 0
    assert done.stdout.splitlines() == expected
    assert "12 frames at" in done.stderr
    assert " 0 dropped" in done.stderr
    missing = _run("camera_loop.py", bundle, "--camera", "63")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: no camera 63")


class _Client:
    """Talks to the service on its port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        assert text.count("\n") == 1  # one line
        return response.status, json.loads(text)


@pytest.fixture(scope="module")
def service(bundle: Path) -> Iterator[_Client]:
    command = [sys.executable, str(EXAMPLES / "http_service.py"), str(bundle), "--port", "0", "--conf", "0.1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    program = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert program.stdout is not None
    address = program.stdout.readline().strip()
    if not address:
        pytest.fail(program.communicate(timeout=PATIENCE_S)[1])
    assert address.startswith("http://127.0.0.1:")
    yield _Client(int(address.rpartition(":")[2]))
    program.send_signal(signal.SIGTERM)
    _, log = program.communicate(timeout=PATIENCE_S)
    assert program.returncode == 0
    assert log.endswith("stopped\n")
    assert "Traceback" not in log


def _jpeg(image: Path) -> bytes:
    body = BytesIO()
    Image.open(image).convert("RGB").save(body, "JPEG", quality=95)
    return body.getvalue()


def test_the_service_detects_what_the_detector_does(
    service: _Client, bundle: Path, images: list[Path], tmp_path: Path
) -> None:
    detector = Detector(bundle, conf=0.1)
    for image in images[:3]:
        body = _jpeg(image)
        (tmp_path / "sent.jpg").write_bytes(body)
        expected = detector(tmp_path / "sent.jpg")
        status, answer = service("POST", "/detect", body)
        assert status == 200
        assert len(expected) > 0
        assert [found["score"] for found in answer["detections"]] == pytest.approx(expected.scores.tolist(), abs=1e-4)
        boxes = np.array([found["box_xyxy"] for found in answer["detections"]])
        np.testing.assert_allclose(boxes, expected.boxes_xyxy, atol=0.051)


def test_the_service_says_that_it_is_healthy(service: _Client) -> None:
    status, answer = service("GET", "/health")
    assert status == 200
    assert answer["status"] == "ok"
    assert answer["library"] == "onnxruntime"


def test_the_service_refuses_what_is_no_image_in_one_line(service: _Client) -> None:
    bomb = BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    cases = [
        ("POST", "/detect", b"hello, this is text", 400, "the body cannot be read as an image"),
        ("POST", "/detect", b"", 400, "cannot be read"),
        ("POST", "/detect", b"\xff\xd8\xff\xe0 broken", 400, "the body"),
        ("POST", "/detect", bomb.getvalue(), 413, "the image has 9000 x 9000 pixels"),
        ("POST", "/other", b"x", 404, "POST /detect"),
        ("POST", "/detect", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400, "the body cannot be read"),
        ("GET", "/detect", None, 404, "GET /health"),
        ("PUT", "/detect", None, 501, "PUT"),
    ]
    for method, path, body, expected, words in cases:
        status, answer = service(method, path, body)
        assert status == expected, answer
        assert words in answer["error"]
        assert "/tmp" not in answer["error"]


def test_the_service_refuses_a_body_of_50_mb_and_works_on(service: _Client, images: list[Path]) -> None:
    status, answer = service("POST", "/detect", bytes(50_000_000))
    assert status == 413
    assert "50000000 bytes" in answer["error"]
    status, answer = service("POST", "/detect", None, **{"Transfer-Encoding": "chunked"})
    assert status == 411
    status, answer = service("POST", "/detect", b"x", **{"Content-Length": "9" * 5000})
    assert status == 413
    assert service("POST", "/detect", _jpeg(images[0]))[0] == 200


def test_concurrent_requests_are_each_answered_with_their_own(service: _Client, images: list[Path]) -> None:
    bodies = [_jpeg(image) for image in images[:2]]
    alone = [service("POST", "/detect", body) for body in bodies]
    assert alone[0] != alone[1]
    answers: dict[int, tuple[int, dict]] = {}

    def ask(number: int) -> None:
        answers[number] = service("POST", "/detect", bodies[number % 2])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [answers[number] for number in range(4)] == alone * 2


@pytest.fixture
def hasty_service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A service in this process that gives a connection half a second and takes two of them; it detects nothing."""
    spec = importlib.util.spec_from_file_location("http_service", EXAMPLES / "http_service.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MOST_SECONDS", 0.5)
    monkeypatch.setattr(module, "MOST_CONNECTIONS", 2)
    server = module.Service(("127.0.0.1", 0), None)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def _answered(connection: socket.socket) -> bytes:
    """What comes until the other side closes; sending on may have been refused before."""
    connection.settimeout(PATIENCE_S)
    answer = b""
    try:
        while part := connection.recv(4096):
            answer += part
    except ConnectionError:
        pass
    return answer


@pytest.mark.parametrize("sent", [b"", b"POST /det", b"POST /detect HTTP/1.1\r\nContent-Length: 1000\r\n\r\nonly this"])
def test_the_service_cuts_off_a_client_however_slowly_it_sends(hasty_service: Any, sent: bytes, capfd) -> None:
    with socket.create_connection(hasty_service.server_address) as connection:
        connection.sendall(sent)
        done = threading.Event()

        def drip() -> None:
            while not done.wait(0.1):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert b"200" not in _answered(connection)
        done.set()
        dripping.join()
    for _ in range(MOST_SLOTS):  # nothing is held by one that was cut off
        assert hasty_service.slots.acquire(timeout=PATIENCE_S)
    assert "Traceback" not in capfd.readouterr().err


def test_the_service_closes_connections_beyond_those_it_has_threads_for(hasty_service: Any) -> None:
    held = [socket.create_connection(hasty_service.server_address) for _ in range(2)]
    deadline = time.monotonic() + PATIENCE_S
    while hasty_service.connections._value and time.monotonic() < deadline:
        time.sleep(0.01)
    with socket.create_connection(hasty_service.server_address) as third:
        assert _answered(third) == b""
    for connection in held:
        assert _answered(connection) == b""  # after their half second
        connection.close()
    while hasty_service.connections._value < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    status, answer = _Client(hasty_service.server_address[1])("GET", "/nothing")
    assert (status, list(answer)) == (404, ["error"])


def test_a_port_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    for port in ("99999", "-1", "http"):
        done = _run("http_service.py", tmp_path, f"--port={port}")
        assert done.returncode == 2
        assert "expected a whole number from 0 to 65535" in done.stderr


def _python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_documentations_code_runs_or_is_an_examples_own(bundle: Path, images: list[Path], tmp_path: Path) -> None:
    """Blocks run one after the other in one namespace, in a folder that holds what they name."""
    shutil.copytree(bundle, tmp_path / "yolov8n-tflite-int8")
    (tmp_path / "photos").mkdir()
    for image in images[:3]:
        shutil.copy(image, tmp_path / "photos" / image.name)
    Image.open(images[0]).convert("RGB").save(tmp_path / "street.jpg")
    _video(tmp_path / "street.mp4", images)
    examples = [path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")]
    blocks = _python_blocks()
    run = [block for block in blocks if not any(_indented(block, source) for source in examples)]
    assert len(blocks) >= 6
    assert len(blocks) > len(run) >= 5
    (tmp_path / "program.py").write_text("\n".join(run))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def _indented(block: str, source: str) -> bool:
    return any(textwrap.indent(block, " " * depth) in source for depth in (0, 4))


def test_the_documentation_names_every_example_and_engine_option() -> None:
    from deploy.runtime.options import OPTIONS

    text = DOCUMENT.read_text(encoding="utf-8")
    for name in ("detect_image.py", "detect_folder.py", "camera_loop.py", "http_service.py"):
        assert f"examples/{name}" in text
    for options in OPTIONS.values():
        for name in options:
            assert f"`{name}`" in text
