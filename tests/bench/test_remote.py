"""`python bench/run.py --device` against a real sshd, behind which a Python has numpy, Pillow and one engine."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import audit
from bench.classes_file import read_classes
from bench.detections_file import read_detections
from bench.errors import BenchError
from bench.records import read_result
from bench.remote import Site, code_files
from bench.run import main
from deploy.bundle import Bundle
from devices import Completed, LocalDevice

RUN = Path(__file__).resolve().parents[2] / "bench" / "run.py"
QUICK = ["--samples", "3", "--min-seconds", "0", "--warmup", "1", "--threads", "1"]

TIMES = ("preprocess_s", "inference_s", "postprocess_s")

BarePython = Callable[..., str]
Capture = pytest.CaptureFixture[str]
Far = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def far(sshd: Any, tmp_path: Path, device_python: str, tiny_bundle: Path, tiny_data: Path) -> Far:
    """Writes an inventory with the device `far` and gives the arguments that bench the tiny bundle there."""

    def make(python: str = device_python, first: str = "", **changed: str) -> list[str]:
        launcher = tmp_path / "launcher"
        launcher.write_text(f'#!/bin/sh\n{first}\nexec {shlex.quote(python)} "$@"\n')
        launcher.chmod(0o755)
        config = sshd.config(tmp_path / "ssh_config", **changed)
        fields = {
            "host": sshd.host,
            "python": str(launcher),
            "workdir": str(tmp_path / "work"),
            "ssh_config": str(config),
        }
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in fields.items()]
        Path("devices.toml").write_text("[device.far]\nthreads = 1\n" + "".join(lines))
        return ["--bundle", str(tiny_bundle), "--data", str(tiny_data), "--device", "far", *QUICK]

    return make


def test_a_device_detects_what_this_machine_detects(far: Far, capsys: Capture) -> None:
    arguments = far()
    assert main(arguments) == 0
    assert main([*arguments, "--device", "local"]) == 0
    there, here = (Path("runs/bench") / path for path in ("tiny/tiny-onnx-fp32@far", "tiny-2/tiny-onnx-fp32@local"))
    far_result, local_result = read_result(there), read_result(here)
    assert far_result.device == "far"
    assert far_result.accuracy == local_result.accuracy
    assert far_result.accuracy is not None
    assert far_result.accuracy.map50_95 > 0.1
    for one, other in zip(
        read_detections(there / "detections.npz").detections,
        read_detections(here / "detections.npz").detections,
        strict=True,
    ):
        np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.class_ids, other.class_ids)
    assert "opencv" not in far_result.tools
    assert far_result.peak_rss_bytes < local_result.peak_rss_bytes + 20e6
    capsys.readouterr()


def test_an_audit_on_a_device_says_what_one_here_says(far: Far, tiny_bundle: Path, capsys: Capture) -> None:
    far()
    assert audit.main([str(tiny_bundle), "--device", "far", "--json"]) == 0
    assert audit.main([str(tiny_bundle), "--threads", "1", "--json"]) == 0
    there, here = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    for name in ("bundle", "engine", "threads", "convolutions", "verdict"):
        assert there[name] == here[name]


def test_a_device_classifies_what_this_machine_classifies(
    far: Far, colour_bundle: Path, colour_data: Path, capsys: Capture
) -> None:
    arguments = [*far(), "--data", str(colour_data)]
    arguments[1] = str(colour_bundle)
    assert main(arguments) == 0
    assert main([*arguments, "--device", "local"]) == 0
    folders = ("colours/colours-onnx-fp32@far", "colours-2/colours-onnx-fp32@local")
    there, here = (Path("runs/bench") / folder for folder in folders)
    assert read_result(there).accuracy == read_result(here).accuracy
    np.testing.assert_array_equal(
        read_classes(there / "classes.npz").class_ids, read_classes(here / "classes.npz").class_ids
    )
    capsys.readouterr()


def test_a_second_run_pushes_nothing(far: Far, tmp_path: Path, capsys: Capture) -> None:
    assert main(far()) == 0

    def pushed() -> dict[Path, int]:
        paths = (tmp_path / "work").rglob("*")
        files = [path for path in paths if path.is_file() and path.suffix not in (".pyc", ".lock")]
        return {path: path.stat().st_mtime_ns for path in files}

    before = pushed()
    assert {path.relative_to(tmp_path / "work").parts[0] for path in before} == {"code", "bundles", "data"}
    assert not any("label" in str(path) or path.suffix == ".txt" for path in before)
    assert main(far()) == 0
    assert pushed() == before
    capsys.readouterr()


def test_a_half_copied_push_is_not_used(far: Far, tmp_path: Path, capsys: Capture) -> None:
    assert main([*far(), "--no-accuracy"]) == 0
    for kind in ("bundles", "data"):
        (whole,) = (tmp_path / "work" / kind).iterdir()
        whole.rename(whole.with_name(f"{whole.name}.partial-999999999-0123abcd"))
        next(path for path in (tmp_path / "work" / kind).rglob("*") if path.is_file()).write_bytes(b"half")
    assert main(far()) == 0
    assert read_result(Path("runs/bench/tiny-2/tiny-onnx-fp32@far")).accuracy is not None
    assert not list((tmp_path / "work").rglob("*partial*"))
    capsys.readouterr()


def test_a_bundle_that_was_changed_there_is_refused_by_the_name_it_has_here(
    far: Far, tmp_path: Path, tiny_bundle: Path, capsys: Capture
) -> None:
    assert main(far()) == 0
    (model,) = (tmp_path / "work").rglob("model.onnx")
    model.write_bytes(model.read_bytes()[:-1])
    assert main(far()) == 1
    assert f"error: tiny-onnx-fp32: far: {tiny_bundle}/model.onnx has SHA-256" in capsys.readouterr().err


def test_a_corrupt_image_has_the_name_it_has_here(far: Far, tiny_data: Path, capsys: Capture) -> None:
    path = tiny_data.parent / "images" / "val" / "two words.png"
    jpeg = path.with_suffix(".jpg")
    Image.open(path).save(jpeg)
    path.unlink()
    jpeg.write_bytes(jpeg.read_bytes()[:1500])
    message = _error(far(), capsys)
    assert message.startswith(f"error: tiny-onnx-fp32: far: {jpeg} cannot be decoded")
    assert "(exit code 1, running " in message
    assert message.endswith("/bench/measure.py -)")


def test_a_missing_engine_names_the_device_and_what_to_install(
    far: Far, bare_python: BarePython, tmp_path: Path, capsys: Capture
) -> None:
    assert _error(far(bare_python("numpy", "pillow")), capsys) == (
        f"error: tiny-onnx-fp32: far: onnxruntime is not installed for {tmp_path}/launcher: "
        f"python -m devices setup far --engine onnx (or there: {tmp_path}/launcher -m pip install onnxruntime)"
    )
    assert not (tmp_path / "work" / "data").exists()


def test_a_python_without_numpy_is_refused(far: Far, bare_python: BarePython, capsys: Capture) -> None:
    message = _error(far(bare_python("pillow")), capsys)
    assert message.startswith("error: far: numpy is not installed for ")
    assert ": python -m devices setup far --engine onnx | " in message
    assert message.endswith("-m pip install numpy)")


def test_an_old_python_is_refused(far: Far, capsys: Capture) -> None:
    facts = json.dumps({"python": "3.9.2", "packages": {}})
    message = _error(far(first=f"echo 'edge-distill facts: {facts}'; exit 0"), capsys)
    assert message.startswith("error: far has Python 3.9.2 as ")
    assert message.endswith("expected 3.11 or newer: name another with python in devices.toml")


def test_a_refused_host_key_is_one_line(far: Far, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "known").touch()
    assert "Host key verification failed" in _error(far(UserKnownHostsFile=f'"{tmp_path / "known"}"'), capsys)


def test_an_unreachable_device_is_one_line(far: Far, capsys: Capture) -> None:
    assert "Connection refused" in _error(far(Port="9"), capsys)


def test_no_space_there_is_one_line(far: Far, tmp_path: Path, capsys: Capture) -> None:
    # As with a full disk, writing a file of more than 100 KiB fails half-way; the code is smaller, the model is not.
    message = _error(far(first="ulimit -f 200"), capsys)
    assert message.startswith("error: tiny-onnx-fp32: far: cannot push 0.3 MB to ")
    assert "File too large" in message
    assert list((tmp_path / "work" / "bundles").iterdir()) == []


def test_a_worker_that_is_killed_there_is_reported(far: Far, tmp_path: Path, capsys: Capture) -> None:
    message = _error(far(first='case "$1" in *measure.py) kill -9 $$;; esac'), capsys)
    assert message.startswith(f"error: tiny-onnx-fp32: far: {tmp_path}/launcher ")
    assert message.endswith(
        "/bench/measure.py - ended with exit code 255: it was killed; most often there was not enough memory"
    )


def test_a_worker_that_breaks_names_device_command_exit_code_and_its_last_words(
    far: Far, tmp_path: Path, capsys: Capture
) -> None:
    words = "seq 1000 1200 >&2; echo 'progress timing 5%' >&2; echo 'Illegal instruction' >&2; exit 7"
    message = _error(far(first=f'case "$1" in *measure.py) {words};; esac'), capsys)
    start, _, said = message.partition(": … ")
    assert start.startswith(f"error: tiny-onnx-fp32: far: {tmp_path}/launcher ")
    assert start.endswith("/bench/measure.py - ended with exit code 7")
    assert said.endswith(" / 1199 / 1200 / Illegal instruction")
    assert 395 <= len(said) <= 400


def test_a_python_that_chatters_is_understood(far: Far, capsys: Capture) -> None:
    assert main(far(first="echo 'Welcome!'; echo '{not of ours}'")) == 0
    capsys.readouterr()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_runs_there_once_the_host_has_gone(far: Far, tmp_path: Path, how: signal.Signals) -> None:
    argv = [sys.executable, str(RUN), *far(), "--min-seconds", "600"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if "on far: timing" in line:
                break
        assert len(_there(tmp_path)) >= 1
        control_folder = _control_folder(tmp_path)
        run.send_signal(how)
        assert run.wait(30) == (130 if how == signal.SIGINT else -9)
        if how == signal.SIGINT:
            assert "interrupted" in run.stderr.read()
    deadline = time.monotonic() + 20
    while _there(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _there(tmp_path) == []
    assert not Path("runs").exists()
    assert not list((tmp_path / "work").rglob("*partial*"))
    assert how == signal.SIGKILL or not control_folder.exists()
    _end_abandoned_connection(control_folder)


def test_a_report_that_breaks_off_is_never_taken_for_whole(tiny_bundle: Path, tiny_data: Path) -> None:
    reports: list[str] = []

    class Breaking(LocalDevice):
        """This machine, but what it reports stops after `length` characters."""

        length = -1

        def run(self, *arguments: Any, **options: Any) -> Completed:
            if not reports:
                done = super().run(*arguments, **options)
                reports.append(done.stdout)
                return done
            return Completed((), 0, reports[0][: self.length], "")

    device, images = Breaking(), sorted((tiny_data.parent / "images" / "val").iterdir())
    site, bundle = Site(device), Bundle.open(tiny_bundle)
    job = {"samples": 2, "min_seconds": 0, "threads": 1}
    assert len(site.measure(bundle, images, job, lambda stage, percent: None).detections) == 6
    lines = reports[0].splitlines(keepends=True)
    whole_lines = [sum(map(len, lines[:count])) for count in range(len(lines))]
    for length in [*whole_lines, 5, whole_lines[1] // 2, len(reports[0]) - 3]:
        device.length = length
        with pytest.raises(BenchError, match=r"reported \d of 6 images and then stopped"):
            site.measure(bundle, images, job, lambda stage, percent: None)


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("measurement", {"latency": None}, "the worker's measurement has latency = None"),
        ("measurement", {"load_s": "soon"}, "the worker's measurement has load_s = 'soon'"),
        ("measurement", {"latency": {"inference_s": [1.0]}}, "expected equally many times above 0 s of preprocess"),
        ("measurement", {"latency": {name: ["a"] for name in TIMES}}, "expected equally many times"),
        ("measurement", {"latency": {name: [0] for name in TIMES}}, "expected equally many times"),
        ("detections", {"boxes_xyxy": "*"}, "the worker's detections of image 0 cannot be read"),
    ],
)
def test_a_record_of_another_kind_is_refused_in_one_line(
    tiny_bundle: Path, tiny_data: Path, kind: str, change: dict[str, Any], says: str
) -> None:
    class Lying(LocalDevice):
        """This machine, but one kind of record is changed."""

        def run(self, *arguments: Any, **options: Any) -> Completed:
            done = super().run(*arguments, **options)
            records = [json.loads(line) for line in done.stdout.splitlines()]
            lines = [json.dumps(record | change if record["kind"] == kind else record) for record in records]
            return Completed((), 0, "\n".join(lines), "")

    images, job = sorted((tiny_data.parent / "images" / "val").iterdir()), {"samples": 2, "min_seconds": 0}
    with pytest.raises(BenchError, match=says) as raised:
        Site(Lying()).measure(Bundle.open(tiny_bundle), images, job, lambda stage, percent: None)
    assert "\n" not in str(raised.value)


def test_the_device_gets_the_runtime_and_the_worker_and_nothing_of_the_host() -> None:
    names = set(code_files())
    assert {"bench/measure.py", "deploy/bundle.py", "deploy/runtime/engines/onnx.py"} <= names
    assert not names & {"bench/run.py", "bench/accuracy.py", "bench/remote.py", "deploy/dataset.py"}
    assert all(name.endswith(".py") for name in names)


def test_the_bench_itself_runs_on_a_device_by_hand(device_python: str, tiny_bundle: Path, tiny_data: Path) -> None:
    argv = [device_python, str(RUN), "--bundle", str(tiny_bundle), *QUICK, "--data"]
    done = subprocess.run([*argv, str(tiny_data.parent / "images")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_result(Path("runs/bench/tiny/tiny-onnx-fp32@local")).accuracy is None
    done = subprocess.run([*argv, str(tiny_data)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs PyYAML, which is not installed: pip install pyyaml" in done.stderr


def test_results_of_a_device_can_be_read_as_any(far: Far, capsys: Capture) -> None:
    assert main([*far(), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["results"][0]
    result = read_result(Path(row["folder"]))
    assert (row["device"], row["threads"]) == ("far", 1)
    assert dataclasses.asdict(result)["machine"]["cores"] >= 1


def _error(arguments: list[str], capsys: Capture) -> str:
    """The first error line of a bench that fails."""
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert not list(Path("runs").rglob("*.json"))
    return next(line for line in err.splitlines() if line.startswith("error: "))


def _there(folder: Path) -> list[bytes]:
    """Workers that run from the device's folder."""
    return [words for words in _command_lines() if f"{folder}/work/code".encode() in words]


def _control_folder(folder: Path) -> Path:
    """Where the connection that uses `folder`'s SSH configuration keeps its socket."""
    mark = b"ControlPath="
    words = next(words for words in _command_lines() if f"{folder}/ssh_config".encode() in words and mark in words)
    return Path(words.partition(mark)[2].split(b"\0")[0].decode()).parent


def _command_lines() -> list[bytes]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.append((process / "cmdline").read_bytes())
        except OSError:
            continue
    return found


def _end_abandoned_connection(folder: Path) -> None:
    """A killed host leaves its shared connection to end by itself after a minute; the tests do not wait."""
    for control in folder.glob("*"):
        subprocess.run(["ssh", "-o", f"ControlPath={control}", "-O", "exit", "any"], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)
