"""Bad input to ``python -m distill.yolo``: one line, a non-zero exit, and no folder left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from ultralytics.utils import downloads

from distill import yolo
from distill.data import open_data_set

REPOSITORY = Path(__file__).resolve().parents[2]
Edit = Callable[[Path], object]


@pytest.fixture
def refuse(toy_data: Path, toy_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command with one thing changed and returns its only line, having checked that nothing was written."""

    def run(**changed: str | Path) -> str:
        values: dict[str, str | Path] = {
            "teacher": toy_teacher,
            "student": "yolov8n.yaml",
            "data": toy_data,
            "imgsz": "64",
            "epochs": "1",
            "batch": "4",
            "device": "cpu",
            "out": tmp_path / "run",
            **changed,
        }
        arguments = [text for name, value in values.items() for text in (f"--{name}", str(value))]
        assert yolo.main(arguments) == 1
        captured = capsys.readouterr()
        lines = captured.err.strip().splitlines()
        assert captured.out == ""
        assert lines[-1].startswith("error: ")
        assert not (tmp_path / "run").exists()
        assert not [line for line in lines if "Traceback" in line]
        return lines[-1]

    return run


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("imgsz", "100", "multiple of 32"),
        ("imgsz", "big", "whole number"),
        ("epochs", "0", "at least 1"),
        ("batch", "-1", "at least 1"),
        ("temperature", "0", "above 0"),
        ("seed", "x", "whole number"),
    ],
)
def test_a_value_out_of_range_is_a_usage_error(
    flag: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        yolo.main([f"--{flag}", value])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        yolo.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in ("teacher", "student", "data", "epochs", "imgsz", "batch", "device", "seed", "losses", "temperature"):
        assert f"--{flag}" in text


def test_no_teacher_and_no_plain_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert yolo.main([]) == 1
    assert "--teacher yolov8x.pt" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["torch", "ultralytics"])
def test_a_missing_package_is_named_with_what_installs_it(package: str) -> None:
    program = (
        f"import runpy, sys; sys.modules[{package!r}] = None; runpy.run_module('distill.yolo', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    advice = "pip install -e '.[train]' in the checkout of edge-distill"
    assert done.stderr == f"error: {package} is not installed: {advice}\n"


def test_a_teacher_that_is_not_there(refuse: Callable[..., str], tmp_path: Path) -> None:
    error = refuse(teacher=tmp_path / "nowhere.pt")
    assert "nowhere.pt' not found" in error
    assert f"put the file at {tmp_path / 'nowhere.pt'}" in error


def test_a_published_teacher_without_internet(
    refuse: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Download failure.\nEnvironment may be offline.")

    monkeypatch.setattr(downloads, "safe_download", offline)
    monkeypatch.chdir(tmp_path)
    error = refuse(teacher="yolov8x.pt")
    assert "could not be downloaded (Download failure. Environment may be offline)" in error
    assert f"put the file at {tmp_path / 'yolov8x.pt'}" in error


def test_a_published_data_set_without_internet(
    refuse: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Environment may be offline.")

    monkeypatch.setattr("ultralytics.data.utils.safe_download", offline)
    monkeypatch.setattr("ultralytics.data.utils.DATASETS_DIR", tmp_path)
    monkeypatch.setattr("distill.data.DATASETS_DIR", tmp_path)
    error = refuse(data="coco128.yaml")
    assert "'coco128.yaml' is not here and could not be downloaded" in error
    assert f"{tmp_path / 'coco128'}, or give --data" in error


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_checkpoint_cut_short(refuse: Callable[..., str], toy_teacher: Path, tmp_path: Path, role: str) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(toy_teacher.read_bytes()[:5000])
    assert f"{role} {cut} is not a loadable" in refuse(**{role: cut})


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint(refuse: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    assert "is not a loadable ultralytics checkpoint" in refuse(teacher=tmp_path / "model.pt")


def test_a_pickle_of_something_else(refuse: Callable[..., str], tmp_path: Path) -> None:
    import torch

    for name, content in (("a.pt", {"weights": torch.zeros(3)}), ("b.pt", [1, 2])):
        torch.save(content, tmp_path / name)
        assert "is not a loadable ultralytics checkpoint" in refuse(teacher=tmp_path / name)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"teacher": "yolov8x.onnx"}, "ending in .pt"),
        ({"student": "yolov8n.onnx"}, "expected a .pt checkpoint"),
        ({"student": "yolov99n.yaml"}, "not found"),
        ({"student": "yolov8n-seg.yaml"}, "segments, but the labels of"),
        ({"student": "yolov8n-cls.yaml"}, "Classify head"),
        ({"student": "yolov10n.yaml"}, "end-to-end"),
        ({"data": "images.zip"}, "expected a .yaml"),
        ({"data": "nowhere.yaml"}, "nowhere.yaml"),
        ({"losses": "crossing"}, "known ones are response, ld, feature"),
        ({"set": "imgsz=64"}, "expected name=value with one of optimizer, lr0"),
        ({"set": "lr0"}, "expected name=value"),
        ({"set": "mosaic=2"}, "between 0.0 and 1.0"),
        ({"set": "nbs=many"}, "'nbs' must be an int"),
        ({"device": "9"}, "device '9'"),
        ({"device": "tpu"}, "device 'tpu'"),
    ],
)
def test_a_wrong_name_is_answered_with_what_is_expected(
    refuse: Callable[..., str], changed: dict[str, str], words: str
) -> None:
    assert words in refuse(**changed)


def test_an_existing_output_is_not_overwritten(
    toy_teacher: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    arguments = ["--teacher", str(toy_teacher), "--data", str(toy_data), "--student", "yolov8n.yaml"]
    assert yolo.main([*arguments, "--out", str(tmp_path / "mine")]) == 1
    assert "never overwritten" in capsys.readouterr().err
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_teacher_of_other_classes_is_refused_with_both_counts(
    refuse: Callable[..., str], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    three = save_model(tmp_path / "three.pt", "yolov8n.yaml", ("red", "blue", "green"))
    error = refuse(teacher=three)
    assert "teacher knows 3 classes, the student's data has 2" in error


def test_a_teacher_of_the_same_classes_in_another_order_is_refused(
    refuse: Callable[..., str], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    swapped = save_model(tmp_path / "swapped.pt", "yolov8n.yaml", ("blue", "red"))
    assert "class 0 is 'blue' for the teacher and 'red' in the data" in refuse(teacher=swapped)


def test_a_teacher_with_other_strides_is_refused_with_both(
    refuse: Callable[..., str], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    p2 = save_model(tmp_path / "p2.pt", "yolov8n-p2.yaml")
    assert "strides: (4, 8, 16, 32) and (8, 16, 32)" in refuse(teacher=p2)


def test_a_teacher_with_an_end_to_end_head_is_refused(
    refuse: Callable[..., str], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    assert "v10Detect head (end-to-end)" in refuse(teacher=save_model(tmp_path / "v10.pt", "yolov10n.yaml"))


def test_a_teacher_with_other_bins_is_refused_with_both(
    refuse: Callable[..., str], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    from ultralytics.nn.tasks import yaml_model_load

    config = yaml_model_load("yolov8n.yaml")
    config["reg_max"] = 8
    assert "reg_max: 8 and 16" in refuse(teacher=save_model(tmp_path / "bins.pt", config))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda y: y.write_text("just text"), "not a mapping"),
        (lambda y: y.write_text("train: [a, b"), "not YAML"),
        (lambda y: y.write_bytes(b"\xff\xfe\x00names"), "not a text file"),
        (lambda y: y.write_text("val: images/val\nnames: [red, blue]\n"), "train"),
        (lambda y: y.write_text("train: images/train\nval: images/val\n"), "names"),
        (lambda y: y.write_text("train: images/none\nval: images/val\nnames: [red, blue]\n"), "does not exist"),
        (lambda y: y.write_text("train: images/train\nval: images/none\nnames: [red, blue]\n"), "images/none"),
        (lambda y: _write(y, "labels/train/0.txt", "2 0.5 0.5 0.1 0.1\n"), "class 2, expected 0 to 1"),
        (lambda y: _write(y, "labels/val/0.txt", "0.5 0.5 0.5 0.1 0.1\n"), "class 0.5, expected 0 to 1"),
        (lambda y: _write(y, "labels/train/0.txt", "0 0.5 1.5 0.1 0.1\n"), "coordinate 1.5"),
        (lambda y: _write(y, "labels/train/0.txt", "0 0.5 nan 0.1 0.1\n"), "coordinate nan"),
        (lambda y: _write(y, "labels/train/0.txt", "0 0.5 0.1\n"), "3 numbers, expected 5"),
        (lambda y: _write(y, "labels/train/0.txt", "red 0.5 0.5 0.1 0.1\n"), "not numbers"),
        (lambda y: _write(y, "labels/train/0.txt", "0 0.5 0.5 0.1 0.1 0.1\n"), "6 numbers, expected 5"),
        (lambda y: _write(y, "labels/train/0.txt", "0 0.5 0.5 -0.005 0.1\n"), "size -0.005"),
        (lambda y: (y.parent / "labels/train/0.txt").write_bytes(b"\xff\x00\x81"), "is not numbers"),
        (lambda y: (y.parent / "images/val/0.png").write_bytes(b"no image"), "0.png cannot be read as an image"),
        (lambda y: _cut(y.parent / "images/train/0.png"), "0.png cannot be decoded"),
        (lambda y: _cut(_as_jpeg(y.parent / "images/train/0.png")), "0.jpg cannot be decoded"),
        (lambda y: Image.new("RGB", (9, 64)).save(y.parent / "images/train/0.png"), "has 9 x 64 pixels"),
        (lambda y: _listing(y, b"\xff\xfe\x00"), "list.txt is not a text file"),
        (lambda y: y.write_text(y.read_text() + "nc: 3\n"), "must match"),
        (lambda y: [p.unlink() for p in (y.parent / "images/train").iterdir()], "no images for train"),
        (lambda y: [p.unlink() for p in (y.parent / "labels/train").iterdir()], "no labels beside"),
    ],
)
def test_a_data_set_that_cannot_be_learned_from(
    refuse: Callable[..., str], toy_copy: Path, edit: Edit, words: str
) -> None:
    edit(toy_copy)
    assert words in refuse(data=toy_copy)


def test_the_next_command_names_a_student_outside_of_runs(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "student.json").write_text("{}")
    monkeypatch.setattr(yolo, "new_run", lambda recipe, data, out: tmp_path / "student.json")
    monkeypatch.chdir(tmp_path)
    arguments = ["--losses", "none", "--student", "yolov8n.yaml", "--data", str(toy_data), "--json"]
    for more, words in (([], ""), (["--out", "my run"], " --student 'my run'")):
        assert yolo.main([*arguments, *more]) == 0
        assert capsys.readouterr().err.splitlines()[-1] == f"next: python -m deploy.tflite --int8{words}"


def _write(yaml: Path, name: str, text: str) -> None:
    (yaml.parent / name).write_text(text)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _as_jpeg(path: Path) -> Path:
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()
    return path.with_suffix(".jpg")


def _listing(yaml: Path, content: bytes) -> None:
    (yaml.parent / "list.txt").write_bytes(content)
    yaml.write_text("train: list.txt\nval: images/val\nnames: [red, blue]\n")


def test_a_hidden_file_is_passed_over_as_ultralytics_does(toy_copy: Path) -> None:
    (toy_copy.parent / "images/train/._0.png").write_bytes(b"left by a file manager")
    assert open_data_set(str(toy_copy)).train_images == 10


def test_a_full_disk_is_one_line_and_leaves_nothing(
    refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distill.trainer.write_state", full)
    assert "No space left on device" in refuse()
