"""A run that broke off is taken up again: only what is missing is measured, and nothing that would not agree."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from bench import plan as plan_module
from bench.plan import read_plan
from bench.records import read_result
from bench.run import main

RUN = Path(__file__).resolve().parents[2] / "bench" / "run.py"
QUICK = ["--samples", "3", "--min-seconds", "0", "--warmup", "1", "--threads", "1"]
OUT = Path("runs/bench/tiny")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own folder and its own home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def broken_off(make_bundle: Callable[..., Path], tiny_data: Path, tmp_path: Path, capsys: Capture) -> list[Path]:
    """Two bundles, and a run of both that misses the second result, as after a power cut."""
    bundles = [make_bundle(tmp_path / name) for name in ("first", "second")]
    assert main(["--bundle", *map(str, bundles), "--data", str(tiny_data), *QUICK]) == 0
    second = OUT / "second@local"
    second.rename(OUT / ".second@local.partial-999999")
    (OUT / "report.html").unlink()
    capsys.readouterr()
    return bundles


def test_only_what_is_missing_is_measured(broken_off: list[Path], capsys: Capture) -> None:
    before = (OUT / "first@local" / "result.json").read_bytes()
    assert main(["--resume", str(OUT), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [row["bundle"] for row in json.loads(out)["results"]] == ["first", "second"]
    assert "1 of 2 results are there, measuring 1" in err
    assert (OUT / "first@local" / "result.json").read_bytes() == before
    one, other = (read_result(OUT / f"{name}@local") for name in ("first", "second"))
    for setting in ("threads", "min_samples", "min_seconds", "warmup", "data", "command"):
        assert one.protocol[setting] == other.protocol[setting]
    assert str(other.protocol["command"]).startswith("python bench/run.py --bundle ")
    assert sorted(path.name for path in OUT.iterdir()) == ["first@local", "report.html", "run.json", "second@local"]
    assert main(["--resume", str(OUT)]) == 0
    assert "2 of 2 results are there, measuring 0" in capsys.readouterr().err


def test_it_can_be_resumed_from_another_folder(
    broken_off: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["--resume", str(tmp_path / OUT)]) == 0
    assert (tmp_path / OUT / "second@local" / "result.json").is_file()
    assert list(Path().iterdir()) == []
    capsys.readouterr()


def test_a_killed_run_is_resumed(make_bundle: Callable[..., Path], tiny_data: Path, tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path / "first"), make_bundle(tmp_path / "second")
    argv = [sys.executable, RUN, "--bundle", first, second, "--data", tiny_data, "--samples", "2", "--min-seconds", "1"]
    with subprocess.Popen([*argv, "--no-accuracy"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("second on local: timing"):
                break
        run.send_signal(signal.SIGKILL)
        assert run.wait(30) == -signal.SIGKILL
    assert {path.name for path in OUT.iterdir()} == {"first@local", "run.json"}
    assert main(["--resume", str(OUT)]) == 0
    assert read_result(OUT / "second@local").protocol["min_seconds"] == 1


def _other_bundle(bundles: list[Path]) -> str:
    manifest = bundles[1] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"tiny"', '"tony"'))
    return f"{bundles[1]} changed since the run began"


def _other_image(bundles: list[Path]) -> str:
    data = bundles[0].parent / "data"
    Image.new("RGB", (32, 32)).save(data / "images" / "val" / "plain.png")
    return f"{data / 'tiny.yaml'} changed since the run began"


def _other_label(bundles: list[Path]) -> str:
    data = bundles[0].parent / "data"
    (data / "labels" / "val" / "plain.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    return f"{data / 'tiny.yaml'} changed since the run began"


def _an_inventory(bundles: list[Path]) -> str:
    Path("devices.toml").write_text('[device.local]\nhost = "me@elsewhere"\n')
    return "the inventory has host = 'me@elsewhere' for local, None when the run began: set it back, or start a new run"


def _no_plan(bundles: list[Path]) -> str:
    (OUT / "run.json").unlink()
    return f"no run.json in {OUT}: nothing to resume there"


def _broken_plan(bundles: list[Path]) -> str:
    (OUT / "run.json").write_text('{"schema": 1, "bundles": 3}')
    return f"{OUT / 'run.json'} is not what a run wrote"


def _other_schema(bundles: list[Path]) -> str:
    (OUT / "run.json").write_text('{"schema": 99}')
    return f"{OUT / 'run.json'} is not what a run wrote (expected schema 1)"


@pytest.mark.parametrize(
    "change", [_other_bundle, _other_image, _other_label, _an_inventory, _no_plan, _broken_plan, _other_schema]
)
def test_nothing_is_measured_where_anything_changed(
    change: Callable[[list[Path]], str], broken_off: list[Path], capsys: Capture
) -> None:
    says = change(broken_off)
    assert main(["--resume", str(OUT)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {says}")
    assert err.count("\n") == 1
    assert not (OUT / "second@local").exists()


def test_a_bundle_that_is_finished_may_change(broken_off: list[Path], capsys: Capture) -> None:
    (broken_off[0] / "model.onnx").unlink()
    assert main(["--resume", str(OUT)]) == 0
    capsys.readouterr()


def test_other_code_does_not_go_on(broken_off: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(plan_module, "code_digest", lambda: "0" * 32)
    assert main(["--resume", str(OUT)]) == 1
    assert "the code that measures changed since the run began" in capsys.readouterr().err


def test_a_run_that_is_still_at_work_is_left_alone(broken_off: list[Path], capsys: Capture) -> None:
    holder = os.open(OUT, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert main(["--resume", str(OUT)]) == 1
    assert f"error: a run is still at work in {OUT}" in capsys.readouterr().err
    os.close(holder)
    assert main(["--resume", str(OUT)]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("flag", [["--threads", "2"], ["--bundle", "x"], ["--device", "far"], ["--no-accuracy"]])
def test_settings_cannot_be_changed(flag: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--resume", str(OUT), *flag])
    assert raised.value.code == 2
    assert "--resume takes everything from the run that it resumes" in capsys.readouterr().err


def test_a_bundle_that_could_not_be_used_is_measured_once_it_can(
    make_bundle: Callable[..., Path], tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    good, bad = make_bundle(tmp_path / "good"), make_bundle(tmp_path / "bad")
    model = (bad / "model.onnx").read_bytes()
    (bad / "model.onnx").unlink()
    assert main(["--bundle", str(good), str(bad), "--data", str(tiny_data), *QUICK]) == 1
    assert f"next: python bench/run.py --resume {OUT}" in capsys.readouterr().err
    (bad / "model.onnx").write_bytes(model)
    assert read_plan(OUT).bundles[1].sha256 is None
    assert main(["--resume", str(OUT)]) == 0
    assert read_result(OUT / "bad@local").accuracy is not None
    capsys.readouterr()


def test_bundles_of_one_name_keep_their_own_folders(
    make_bundle: Callable[..., Path], tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    bundles = [str(make_bundle(tmp_path / parent / "same")) for parent in ("a", "b")]
    assert main(["--bundle", *bundles, "--data", str(tiny_data), "--no-accuracy", *QUICK]) == 0
    paths = [read_result(OUT / name).bundle["path"] for name in ("same@local", "same@local-2")]
    assert paths == bundles
    capsys.readouterr()
