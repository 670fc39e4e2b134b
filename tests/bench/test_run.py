"""`python bench/run.py` on this machine: figures, outputs, and everything that can be wrong with its inputs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.accuracy import score
from bench.detections_file import read_detections
from bench.inputs import load_images, newest_bundles
from bench.records import read_result
from bench.run import main
from deploy.bundle import sha256_file
from deploy.runtime import Detector

RUN = Path(__file__).resolve().parents[2] / "bench" / "run.py"
QUICK = ["--samples", "3", "--min-seconds", "0", "--warmup", "1", "--threads", "1"]

MakeBundle = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own folder and its own home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_result_holds_what_was_measured(tiny_bundle: Path, tiny_data: Path, capsys: Capture) -> None:
    assert main(["--bundle", str(tiny_bundle), "--data", str(tiny_data), *QUICK]) == 0
    out, err = capsys.readouterr()
    result = read_result(Path("runs/bench/tiny/tiny-onnx-fp32@local"))
    assert result.bundle["name"] == "tiny-onnx-fp32"
    assert result.bundle["sha256"] == sha256_file(tiny_bundle / "manifest.json")
    assert result.bundle["size_bytes"] == (tiny_bundle / "model.onnx").stat().st_size
    assert result.bundle["imgsz"] == [64, 64]
    assert result.device == "local"
    assert len(result.latency.inference_s) == 3
    assert result.peak_rss_bytes > 20e6
    assert result.protocol["data"]["images"] == 6
    assert str(result.protocol["command"]).startswith("python bench/run.py --bundle ")
    assert set(result.tools) >= {"python", "numpy", "pillow", "onnxruntime"}
    row = next(line for line in out.splitlines() if "tiny-onnx-fp32" in line)
    assert result.accuracy is not None
    assert f"{100 * result.accuracy.map50_95:.1f}" in row.split()
    assert Path("runs/bench/tiny/report.html").is_file()
    assert err.splitlines()[-1] == "next: python bench/run.py --device user@host"


def test_a_result_has_intervals_processor_time_and_throughput(
    tiny_bundle: Path, tiny_data: Path, capsys: Capture
) -> None:
    command = ["--bundle", str(tiny_bundle), "--data", str(tiny_data), "--no-accuracy", *QUICK]
    assert main([*command, "--samples", "40", "--streams", "2"]) == 0
    folder = Path("runs/bench/tiny/tiny-onnx-fp32@local")
    result, summary = read_result(folder), json.loads((folder / "result.json").read_text())["summary"]
    low, high = summary["total_interval_s"]["p50"]
    assert low <= summary["total_s"]["p50"] <= high
    assert summary["total_interval_s"]["p99"][1] is None  # forty samples bound no p99 from above
    assert summary["cpu_s_per_image"] == (result.cpu["user_s"] + result.cpu["system_s"]) / 40
    assert summary["joules_per_image"] is None or result.energy is not None
    assert result.throughput is not None
    assert result.throughput["streams"] == 2
    assert " FPS of 2 streams" in capsys.readouterr().err


def test_accuracy_is_that_of_the_detections_which_are_kept(tiny_bundle: Path, tiny_data: Path) -> None:
    assert main(["--bundle", str(tiny_bundle), "--data", str(tiny_data), *QUICK]) == 0
    folder = Path("runs/bench/tiny/tiny-onnx-fp32@local")
    accuracy, kept = read_result(folder).accuracy, read_detections(folder / "detections.npz")
    images = load_images(tiny_data)
    detector = Detector(tiny_bundle, 0.001, 0.7, 300, threads=1, multi_label=True)
    expected = [detector(path) for path in images.paths]
    assert kept.images == tuple(map(str, images.paths))
    for there, here in zip(kept.detections, expected, strict=True):
        np.testing.assert_array_equal(there.boxes_xyxy, here.boxes_xyxy)
        np.testing.assert_array_equal(there.scores, here.scores)
    assert images.truths is not None
    scores = score(expected, images.truths, 2)
    assert accuracy is not None
    assert (accuracy.map50_95, accuracy.map50, accuracy.images) == (scores.map50_95, scores.map50, 6)
    assert accuracy.map50_95 > 0.1
    assert accuracy.dataset_sha256 == images.sha256
    assert dict(accuracy.per_class) == {
        name: ap for name, ap in zip(("square", "disc"), scores.per_class_ap, strict=True) if np.isfinite(ap)
    }


def test_bare_it_takes_the_newest_student_s_newest_bundles_and_their_data(
    make_bundle: MakeBundle, tiny_data: Path, capsys: Capture
) -> None:
    old, new = {"name": "old", "sha256": "1"}, {"name": "new", "sha256": "2"}
    for age, (name, fields) in enumerate(
        {
            "new-onnx-fp32-2": {"student": new},
            "new-onnx-fp32": {"student": new},
            "old-onnx-int8": {"student": old, "precision": "int8"},
            "old-onnx-fp32": {"student": old},
        }.items()
    ):
        folder = make_bundle(Path("runs/deploy") / name, data_yaml=str(tiny_data), **fields)
        os.utime(folder / "manifest.json", (1e9 - age, 1e9 - age))
    Path("runs/deploy/.new-onnx-int8.partial-1").mkdir()
    (Path("runs/deploy/.new-onnx-int8.partial-1") / "manifest.json").write_text("{}")
    assert newest_bundles() == [Path("runs/deploy/new-onnx-fp32-2")]
    assert main(QUICK) == 0
    assert [path.name for path in Path("runs/bench/new").iterdir() if path.is_dir()] == ["new-onnx-fp32-2@local"]
    assert read_result(Path("runs/bench/new/new-onnx-fp32-2@local")).accuracy is not None
    capsys.readouterr()


def test_runs_are_never_overwritten(tiny_bundle: Path, tiny_data: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ["--bundle", str(tiny_bundle), "--data", str(tiny_data), "--no-accuracy", *QUICK]
    assert main(command) == 0
    first = (tmp_path / "runs/bench/tiny/tiny-onnx-fp32@local/result.json").read_bytes()
    assert main(command) == 0
    assert sorted(path.name for path in Path("runs/bench").iterdir()) == ["tiny", "tiny-2"]
    assert (tmp_path / "runs/bench/tiny/tiny-onnx-fp32@local/result.json").read_bytes() == first
    assert main([*command, "--out", "runs/bench/tiny"]) == 1
    assert "error: runs/bench/tiny already exists: choose another --out" in capsys.readouterr().err
    assert main([*command, "--out", "mine"]) == 0
    assert Path("mine/tiny-onnx-fp32@local/result.json").is_file()


def test_json_has_the_figures_unrounded(tiny_bundle: Path, tiny_data: Path, capsys: Capture) -> None:
    assert main(["--bundle", str(tiny_bundle), "--data", str(tiny_data), "--json", "--images", "4", *QUICK]) == 0
    printed = json.loads(capsys.readouterr().out)
    result = read_result(Path(printed["results"][0]["folder"]))
    assert result.accuracy is not None
    assert result.accuracy.images == 4
    assert printed["results"][0]["map50_95"] == 100 * result.accuracy.map50_95
    assert printed["results"][0]["p99_ms"] == result.summary()["total_s"]["p99"] * 1e3
    assert printed["failures"] == {}
    assert Path(printed["report"]).is_file()


def test_json_tells_failures_too(tiny_bundle: Path, tiny_data: Path, capsys: Capture) -> None:
    (tiny_bundle / "model.onnx").unlink()
    assert main(["--bundle", str(tiny_bundle), "--data", str(tiny_data), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["report"], printed["results"]) == (None, [])
    assert "lacks model.onnx" in printed["failures"][str(tiny_bundle)]


def test_a_folder_of_images_is_timed_and_not_scored(tiny_bundle: Path, tiny_data: Path, capsys: Capture) -> None:
    assert main(["--bundle", str(tiny_bundle), "--data", str(tiny_data.parent / "images"), *QUICK]) == 0
    folder = Path("runs/bench/tiny/tiny-onnx-fp32@local")
    assert read_result(folder).accuracy is None
    assert not (folder / "detections.npz").exists()
    capsys.readouterr()


def test_awkward_names_are_only_names(
    make_bundle: MakeBundle, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    names = ["two words", "it's", "$(touch evaluated)", "größe 日本", "new\nline", "-dash", "a;touch evaluated"]
    bundles = [str(make_bundle(tmp_path / "odd" / name)) for name in names]
    assert main(["--bundle", *bundles, "--data", str(tiny_data), "--no-accuracy", *QUICK]) == 0
    found = [read_result(path.parent).bundle["name"] for path in Path("runs/bench/tiny").rglob("result.json")]
    assert sorted(map(str, found)) == sorted(names)
    assert not list(tmp_path.rglob("evaluated"))
    capsys.readouterr()


def test_one_failing_bundle_leaves_the_others_measured(
    make_bundle: MakeBundle, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    good, truncated = make_bundle(tmp_path / "good"), make_bundle(tmp_path / "truncated")
    model = truncated / "model.onnx"
    manifest = (truncated / "manifest.json").read_text().replace(sha256_file(model), "HASH")
    model.write_bytes(model.read_bytes()[:1000])
    (truncated / "manifest.json").write_text(manifest.replace("HASH", sha256_file(model)))
    assert main(["--bundle", str(truncated), str(good), "--data", str(tiny_data), *QUICK]) == 1
    out, err = capsys.readouterr()
    assert "good" in out
    assert [path.name for path in Path("runs/bench/tiny").iterdir() if path.is_dir()] == ["good@local"]
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert errors[0].startswith("error: truncated: ONNX Runtime ")
    assert f"refuses {model}: " in errors[0]
    assert errors[1] == f"error: 1 of 2 bundles failed: {truncated}"
    assert "Traceback" not in err


def _changed_byte(bundle: Path, data: Path) -> None:
    model = bundle / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)


def _no_manifest(bundle: Path, data: Path) -> None:
    (bundle / "manifest.json").unlink()


def _no_model(bundle: Path, data: Path) -> None:
    (bundle / "model.onnx").unlink()


def _broken_manifest(bundle: Path, data: Path) -> None:
    (bundle / "manifest.json").write_text("{")


def _no_data(bundle: Path, data: Path) -> None:
    data.unlink()


def _no_images(bundle: Path, data: Path) -> None:
    for path in (data.parent / "images" / "val").iterdir():
        path.unlink()


def _no_split(bundle: Path, data: Path) -> None:
    data.write_text("names: [square, disc]\ntrain: images/val\n")


def _other_classes(bundle: Path, data: Path) -> None:
    data.write_text(data.read_text().replace("[square, disc]", "[square, disc, ring]"))


def _label_out_of_range(bundle: Path, data: Path) -> None:
    (data.parent / "labels" / "val" / "plain.txt").write_text("2 0.5 0.5 0.1 0.1\n")


def _label_outside(bundle: Path, data: Path) -> None:
    (data.parent / "labels" / "val" / "plain.txt").write_text("1 1.5 0.5 0.1 0.1\n")


def _no_labels(bundle: Path, data: Path) -> None:
    for path in (data.parent / "labels" / "val").iterdir():
        path.unlink()


def _corrupt_image(bundle: Path, data: Path) -> None:
    (data.parent / "images" / "val" / "plain.png").write_bytes(b"no image")


def _truncated_image(bundle: Path, data: Path) -> None:
    path = data.parent / "images" / "val" / "plain.png"
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()
    path.with_suffix(".jpg").write_bytes(path.with_suffix(".jpg").read_bytes()[:1500])  # its header is whole


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_changed_byte, "the file was changed"),
        (_no_manifest, "is no bundle"),
        (_no_model, "lacks model.onnx"),
        (_broken_manifest, "is not valid JSON"),
        (_no_data, "no data set file"),
        (_no_images, "holds no images"),
        (_no_split, "has no 'val' split"),
        (_other_classes, "has 3 classes, the bundle 2"),
        (_label_out_of_range, "plain.txt:1 has class 2, expected 0..1"),
        (_label_outside, "plain.txt:1 has a box outside the image"),
        (_no_labels, "has 6 images and not one label"),
        (_corrupt_image, "plain.png cannot be read as an image"),
        (_truncated_image, "images/val/plain.jpg cannot be decoded"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_output(
    spoil: Callable[[Path, Path], None], says: str, tiny_bundle: Path, tiny_data: Path, capsys: Capture
) -> None:
    spoil(tiny_bundle, tiny_data)
    assert main(["--bundle", str(tiny_bundle), "--data", str(tiny_data), *QUICK]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if not line.startswith("tiny-onnx-fp32 on local")]
    assert len(errors) == 2
    assert errors[0].startswith("error: tiny-onnx-fp32: ")
    assert says in errors[0]
    assert errors[1] == f"error: 1 of 1 bundles failed: {tiny_bundle}"
    assert not list(Path("runs").rglob("*.json"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "error: no bundle below"),
        (["--bundle", "/no/such"], "error: such: /no/such is no bundle"),
        (["--bundle", "B"], "does not say which data set it is for: give --data"),
        (["--bundle", "B", "--data", "/no/such.yaml"], "no data set file /no/such.yaml"),
        (["--bundle", "B", "--data", "EMPTY"], "holds no images"),
        (["--bundle", "B", "--data", "D", "--inventory", "none.toml"], "error: no inventory none.toml"),
        (["--bundle", "B", "--data", "D", "--device", "nobody.invalid"], "there is none) lists no device; user@host"),
        (["--bundle", "B", "--data", "D", "--device=-oProxyCommand=x"], "is no SSH destination"),
        (["--bundle", "B", "--data", "D", "--device", "nobody@127.0.0.1:x"], "error: "),
    ],
)
def test_what_cannot_be_found_is_named(
    argv: list[str], says: str, tiny_bundle: Path, tiny_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"B": str(tiny_bundle), "D": str(tiny_data), "EMPTY": str(tmp_path / "empty")}
    assert main([places.get(word, word) for word in argv]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert "Traceback" not in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["--threads", "0"],
        ["--threads", "two"],
        ["--samples", "-1"],
        ["--min-seconds", "nan"],
        ["--min-seconds", "-1"],
        ["--warmup", "-1"],
        ["--images", "0"],
        ["--bundle"],
        ["--no-such-flag"],
        ["stray"],
    ],
)
def test_misuse_exits_with_2(argv: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == 2
    assert "usage: python bench/run.py" in capsys.readouterr().err


def test_help_comes_from_any_folder_by_path_and_as_a_module(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    by_path = subprocess.run([sys.executable, RUN, "--help"], capture_output=True, text=True, check=True)
    as_module = subprocess.run(
        [sys.executable, "-m", "bench.run", "--help"], cwd=RUN.parents[1], capture_output=True, text=True, check=True
    )
    assert by_path.stdout == as_module.stdout
    for flag in ("--bundle", "--data", "--device", "--threads", "--json", "--out"):
        assert flag in by_path.stdout


def test_ctrl_c_keeps_what_is_finished_and_nothing_half_written(
    make_bundle: MakeBundle, tiny_data: Path, tmp_path: Path
) -> None:
    first, second = make_bundle(tmp_path / "first"), make_bundle(tmp_path / "second")
    argv = [sys.executable, RUN, "--bundle", first, second, "--data", tiny_data, "--samples", "9", "--min-seconds", "2"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("second on local: timing"):
                break
        run.send_signal(signal.SIGINT)
        rest = run.stderr.read()
        assert run.wait(30) == 130
    assert "interrupted" in rest
    assert "python -m bench.report runs/bench/tiny" in rest
    assert "Traceback" not in rest
    assert "python bench/run.py --resume runs/bench/tiny" in rest
    assert sorted(path.name for path in Path("runs/bench/tiny").iterdir()) == ["first@local", "run.json"]
    assert _workers(tmp_path) == []


def test_a_full_disk_here_is_one_line(tiny_bundle: Path, tiny_data: Path, tmp_path: Path) -> None:
    # A file may have no more than 2 KiB: as with a full disk, the write of the result fails half-way.
    command = 'ulimit -f 4; exec "$@"'
    argv = ["sh", "-c", command, "sh", sys.executable, RUN, "--bundle", tiny_bundle, "--data", tiny_data, *QUICK]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: [Errno 27] File too large")
    assert "Traceback" not in done.stderr
    assert not [path for path in Path("runs").rglob("*") if path.is_file()]


def _workers(folder: Path) -> list[Any]:
    """Processes that work in `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
            if b"bench/measure.py\0-" in words and (process / "cwd").resolve() == folder.resolve():
                found.append(words)
        except OSError:
            continue
    return found
