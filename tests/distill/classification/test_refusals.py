"""Bad input to ``python -m distill.classify``: one line, exit code 1, and no folder left behind."""

from __future__ import annotations

import json
import shutil
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs the [train] extra")
pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")

from PIL import Image  # noqa: E402

from distill import classify  # noqa: E402
from distill.classification import networks, sources, study  # noqa: E402
from distill.classification.folders import open_image_folder  # noqa: E402


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of flat colour, 16 px."""
    root = tmp_path / "data"
    for split, count in (("train", 4), ("val", 2)):
        for value, name in ((40, "dark"), (200, "light")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (16, 16), (value + index,) * 3).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture
def refuse(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command with some flags changed and returns its last line, having checked what it left."""

    def run(**changed: str | Path | list[str] | None) -> str:
        values: dict[str, Any] = {
            **{"teacher": "cnn-4-8", "student": "cnn-2-4", "data": data, "epochs": "1", "batch": "4"},
            **{"device": "cpu", "out": tmp_path / "run", **changed},
        }
        arguments = []
        for name, value in values.items():
            if value is not None:
                arguments += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
        assert classify.main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert not (tmp_path / "run").exists()
        last = captured.err.strip().splitlines()[-1]
        assert last.startswith("error: ")
        return last

    return run


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"method": "magic"}, ["unknown method 'magic'", "kd", "takd"]),
        ({"student": "resnet5000"}, ["unknown network 'resnet5000'", "mobilenet_v2"]),
        ({"teacher": "resnet5000"}, ["unknown network 'resnet5000'"]),
        ({"losses": "magic=1"}, ["unknown loss 'magic'", "rkd"]),
        ({"losses": "none"}, ["--method none"]),
        ({"data": "nowhere"}, ["neither a folder nor a known set", "cifar10"]),
        ({"teacher": None}, ["method kd needs a teacher"]),
        ({"method": "none"}, ["method none has no teacher"]),
        ({"teacher": ["cnn-4-8", "cnn-4-8"]}, ["one teacher, 2 are given"]),
        ({"teacher": "nowhere/run"}, ["nowhere/run does not exist"]),
        ({"student": "alexnet"}, ["alexnet cannot take images of 16 x 16 px", "--imgsz"]),
        ({"student": "yolov8n.yaml"}, ["Detect head", "yolov8n-cls.pt"]),
        ({"student": "cnn-2-4", "set": ["pretrained=true"]}, ["no published weights"]),
        ({"set": ["lr=-1"]}, ["--set lr=-1", "at least 0"]),
        ({"set": ["lr=inf"]}, ["--set lr=inf", "at least 0"]),
        ({"method": "none", "teacher": None, "temperature": "2"}, ["method none has no use for --temperature"]),
        ({"method": "mutual", "teacher": None, "balance": "0.5"}, ["method mutual has no use for --balance"]),
        ({"method": "mutual", "teacher": None, "losses": "kd"}, ["method mutual has no use for --losses"]),
        ({"method": "ensemble-features", "losses": "kd"}, ["method ensemble-features has no use for --losses"]),
        ({"method": "subclass", "losses": "dkd=1"}, ["subclass: dkd", "--losses"]),
        ({"set": ["colour=red"]}, ["expected name=value with one of optimizer"]),
        ({"set": ["optimizer=adam"]}, ["expected one of adamw, sgd"]),
        ({"set": ["epochs"]}, ["expected name=value"]),
        ({"set": ["lr=1", "lr=2"]}, ["lr twice"]),
        ({"set": ["patience=3"]}, ["add holdout="]),
        ({"set": ["pretrained=1"]}, ["expected true or false"]),
        ({"method": "fitnets"}, ["1 of 1 epochs are for the hint"]),
        ({"method": "eskd", "set": ["teach_epochs=2"]}, ["epochs from 1 to 1"]),
        ({"method": "takd", "student": "squeezenet1_1", "imgsz": "64"}, ["linear layer"]),
        ({"method": "takd", "student": "mobilenet_v2", "imgsz": "32"}, ["--set assistants="]),
        ({"device": "7"}, ["device '7' is not here", "--device cpu"]),
        ({"teacher": "timm:resnetv2_50"}, ["pip install timm", "resnet50"]),
        ({"teacher": "resnet50v2", "imgsz": "32"}, ["pip install timm", "not pre-activated"]),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    flags: dict[str, Any], words: list[str], refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks.importlib.util, "find_spec", lambda name: None)  # whether timm is installed or not
    line = refuse(**flags)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "0"], "at least 1"),
        (["--batch", "1"], "at least 2"),
        (["--temperature", "0"], "above 0"),
        (["--balance", "1.5"], "from 0 to 1"),
        (["--seed", "x"], "whole number"),
    ],
)
def test_a_malformed_flag_is_a_usage_error(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        classify.main(flags)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_help_says_of_extractive_that_it_is_no_reproduction(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (classify.main, study.main):
        with pytest.raises(SystemExit) as stop:
            main(["--help"])
        assert stop.value.code == 0
        assert "not a reproduction" in " ".join(capsys.readouterr().out.split())


def _one_class(root: Path) -> None:
    for split in ("train", "val"):
        shutil.rmtree(root / split / "light")


def _other_class(root: Path) -> None:
    (root / "val" / "light").rename(root / "val" / "bright")


def _empty_class(root: Path) -> None:
    for path in (root / "train" / "dark").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: shutil.rmtree(root / "val"), ["has no val/ (or test/)"]),
        (lambda root: shutil.rmtree(root / "train"), ["has no train/"]),
        (_one_class, ["1 class folders, expected 2"]),
        (_other_class, ["differ in class 'bright'"]),
        (_empty_class, ["train/dark holds no images"]),
        (lambda root: (root / "train" / "dark" / "1.png").write_bytes(b"no image"), ["1.png", "replace or remove it"]),
        (
            lambda root: (root / "val" / "light" / "1.png").write_bytes(
                (root / "val" / "light" / "0.png").read_bytes()[:60]
            ),
            ["1.png", "replace or remove it"],
        ),
    ],
)
def test_a_malformed_image_folder_is_refused_with_what_is_wrong(
    damage: Callable[[Path], Any], words: list[str], data: Path, refuse: Callable[..., str]
) -> None:
    damage(data)
    line = refuse()
    assert all(word in line for word in words), line


@pytest.fixture
def trained(data: Path, tmp_path: Path) -> Path:
    """A finished run on `data`."""
    out = tmp_path / "trained"
    flags = ["--student", "cnn-4-8", "--method", "none", "--data", str(data), "--epochs", "1", "--batch", "4"]
    assert classify.main([*flags, "--device", "cpu", "--out", str(out)]) == 0
    return out


def test_a_teacher_of_other_classes_or_size_or_damaged_is_refused(
    trained: Path, data: Path, refuse: Callable[..., str]
) -> None:
    assert "16 x 16 px, the run has 32 x 32: give --imgsz 16" in refuse(teacher=trained, imgsz="32")
    assert "in its own way" in refuse(teacher=trained, method="sftn")
    assert "two or more" in refuse(teacher=trained, method="ensemble-logits")
    assert "peers start untrained" in refuse(teacher=trained, method="mutual")
    assert "does not keep its weights of epoch 1" in refuse(teacher=trained, method="eskd")
    for split in ("train", "val"):
        (data / split / "light").rename(data / split / "pale")
    assert "class 1 is 'light' for teacher" in refuse(teacher=trained)
    for split in ("train", "val"):
        shutil.copytree(data / split / "pale", data / split / "white")
    assert "knows 2 classes, the data has 3" in refuse(teacher=trained)
    for split in ("train", "val"):
        shutil.rmtree(data / split / "white")
        (data / split / "pale").rename(data / split / "light")
    weights = trained / "student" / "weights.pt"
    weights.write_bytes(weights.read_bytes()[:-40])
    assert "not the file that student.json describes" in refuse(teacher=trained)
    described = json.loads((trained / "student" / "student.json").read_text())
    (trained / "student" / "student.json").write_text(json.dumps({**described, "task": "detect"}))
    assert "of task 'detect'" in refuse(teacher=trained)


def test_a_loss_that_becomes_nan_stops_with_epoch_and_parts(refuse: Callable[..., str]) -> None:
    line = refuse(set=["optimizer=sgd", "lr=1e30", "warmup=0"], method="none", teacher=None, epochs="3")
    assert "the loss became" in line
    assert "at epoch 1, batch 2 of 2" in line
    assert "--set lr=" in line


def test_resuming_refuses_what_is_not_that_run(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*flags: str) -> str:
        assert classify.main(["--device", "cpu", *flags]) == 1
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "is finished" in refused("--resume", str(trained))
    assert "drop --epochs" in refused("--resume", str(trained), "--epochs", "3")
    assert "is not a run to resume" in refused("--resume", str(data))
    assert "exists and is never overwritten" in refused("--out", str(trained), "--data", str(data), "--method", "none")
    shutil.rmtree(trained / "student")
    recipe = trained / "recipe.json"
    text = recipe.read_text()
    recipe.write_text(text.replace('"classify"', '"detect"'))
    assert "distill.yolo" in refused("--resume", str(trained))
    recipe.write_text(text[:50])
    assert "is damaged" in refused("--resume", str(trained))
    for whole, broken, words in (
        ('"teachers": []', '"teachers": null', "teachers is None"),
        ('"epochs": 1', '"epochs": "one"', "epochs is 'one'"),
        ('"weight_decay": 0.0005', '"weight_decay": "much"', "weight_decay=much"),
    ):
        assert whole in text
        recipe.write_text(text.replace(whole, broken))
        assert words in refused("--resume", str(trained))
    recipe.write_text(text)
    (data / "train" / "dark" / "0.png").unlink()
    assert "changed since the run was started" in refused("--resume", str(trained))


def test_data_that_cannot_be_downloaded_says_where_to_put_it(
    refuse: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources.datasets, "CIFAR10", offline)
    monkeypatch.setattr(sources.datasets, "MNIST", offline)
    line = refuse(data="cifar10")
    assert "could not be downloaded" in line
    assert f"put cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html into {tmp_path}" in line
    assert "MNIST/raw" in refuse(data="mnist")
    assert not (tmp_path / "runs" / "data" / "cifar10").exists()
    assert not list((tmp_path / "runs" / "data").glob(".*"))


def test_pretrained_weights_that_cannot_be_downloaded_say_where_to_put_them(
    refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(networks.torchvision.models._api, "load_state_dict_from_url", offline)
    line = refuse(student="mobilenet_v2", imgsz="32", set=["pretrained=true"])
    assert "published weights of mobilenet_v2 could not be downloaded" in line
    assert "checkpoints" in line


def test_mhist_must_be_asked_for_and_its_partition_is_kept(
    refuse: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "must be asked for at https://bmirds.github.io/MHIST" in refuse(data="mhist")
    folder = tmp_path / "runs" / "data" / "mhist-original"
    (folder / "images").mkdir(parents=True)
    rows = ["Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"]
    for index, (label, split) in enumerate((("HP", "train"), ("SSA", "train"), ("HP", "test"), ("SSA", "test"))):
        Image.new("RGB", (24, 24), (index * 60,) * 3).save(folder / "images" / f"MHIST_{index}.png")
        rows.append(f"MHIST_{index}.png,{label},{6 * index},{split}")
    (folder / "annotations.csv").write_text("\n".join([*rows, "MHIST_9.png,HP,1,train"]))
    assert "MHIST_9.png" in refuse(data="mhist")
    assert not (tmp_path / "runs" / "data" / "mhist").exists()
    (folder / "annotations.csv").write_text("\n".join(rows))
    data = sources.open_data("mhist")
    assert data.names == ("HP", "SSA")
    assert [len(data.train.files), len(data.val.files)] == [2, 2]
    with Image.open(data.val.files[1]) as image:
        assert image.getpixel((0, 0)) == (180, 180, 180)
    assert open_image_folder(tmp_path / "runs" / "data" / "mhist").train.sha256 == data.train.sha256
