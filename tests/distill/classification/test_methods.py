"""Every method of ``python -m distill.classify``, and what a run leaves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs the [train] extra")
pytest.importorskip("torchvision", reason="distillation needs the [train] extra")
pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from distill import classify  # noqa: E402
from distill.classification import training  # noqa: E402
from distill.classification.fit import accuracy  # noqa: E402
from distill.classification.lessons import Precision  # noqa: E402
from distill.classification.methods import METHODS  # noqa: E402
from distill.classification.networks import build_classifier  # noqa: E402
from distill.classification.stage import Stage  # noqa: E402
from distill.losses import CLASS_LOSSES  # noqa: E402

TEACHER, STUDENT = "cnn-12-24", "cnn-6-12"


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("method", [name for name in METHODS if name != "heterogeneous"])
def test_every_method_learns_an_easy_problem(method: str, arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("--set", "lr=0.01", "warmup=0", "views=2", "teacher_epochs=4", "hint_epochs=2")
    assert classify.main(arguments(out, *settings, method=method)) == 0
    rows = Stage(out / "training" / "student").history()
    losses = [sum(v for k, v in row.items() if k.startswith("loss_")) for row in rows]
    assert losses[-1] < losses[0]
    described = json.loads((out / "student" / "student.json").read_text())
    assert described["metrics"]["top1"] > 0.5  # a third is chance
    assert described["method"] == method
    teachers = {"none": 0, "mutual": 0, "takd": 2, "ensemble-logits": 2, "ensemble-features": 2, "unified": 2}
    assert len(described["teachers"]) == teachers.get(method, 1)


@pytest.mark.usefixtures("quick_export")
def test_unlike_teachers_teach_together_and_alike_ones_are_refused(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = arguments(tmp_path / "run", method="heterogeneous", teachers=(TEACHER, "cnn-4-16"))
    assert classify.main(flags) == 0
    described = json.loads((tmp_path / "run" / "student" / "student.json").read_text())
    assert [t["name"] for t in described["teachers"]] == [TEACHER, "cnn-4-16"]
    assert classify.main(arguments(tmp_path / "alike", method="heterogeneous")) == 1
    assert "different architectures" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("quick_export")
def test_every_class_loss_can_be_asked_for_by_name(
    arguments: Callable[..., list[str]], teacher_run: Path, tmp_path: Path
) -> None:
    losses = ",".join(f"{name}=0.1" for name in CLASS_LOSSES)
    flags = arguments(tmp_path / "run", "--losses", losses, "--epochs", "1", teachers=(str(teacher_run),))
    assert classify.main(flags) == 0
    row = Stage(tmp_path / "run" / "training" / "student").history()[0]
    assert {k for k in row if k.startswith("loss_")} == {"loss_labels", *(f"loss_{name}" for name in CLASS_LOSSES)}


@pytest.mark.usefixtures("quick_export")
def test_an_ensemble_teaches_by_maps_too_and_from_remembered_answers(
    arguments: Callable[..., list[str]], teacher_run: Path, tmp_path: Path
) -> None:
    settings = ("--losses", "at=10", "--epochs", "1", "--set", "views=1")
    flags = arguments(tmp_path / "run", *settings, method="ensemble-logits", teachers=(str(teacher_run),) * 2)
    assert classify.main(flags) == 0
    assert Stage(tmp_path / "run" / "training" / "student").history()[0]["loss_at"] > 0


@pytest.mark.usefixtures("quick_export")
def test_an_early_stopped_teacher_is_chosen_without_the_test_images(
    arguments: Callable[..., list[str]], teacher_run: Path, colours: Path, tmp_path: Path
) -> None:
    flags = arguments(
        tmp_path / "run", "--set", "lr=0.01", "teach_epochs=3+6", method="eskd", teachers=(str(teacher_run),)
    )
    assert classify.main(flags) == 0
    kept = {
        hashlib.sha256(Stage(teacher_run / "training" / "student").kept(e).read_bytes()).hexdigest() for e in (3, 6)
    }
    described = json.loads((tmp_path / "run" / "student" / "student.json").read_text())
    assert described["teacher"]["sha256"] in kept
    assert len(list((tmp_path / "run" / "training").glob("probe-*"))) == 2

    # With every test image under another name the scores differ, and nothing that was learned or chosen does.
    swapped = tmp_path / "swapped"
    shutil.copytree(colours, swapped)
    for name, other in (("blue", "kept"), ("green", "blue"), ("red", "green"), ("kept", "red")):
        (swapped / "test" / name).rename(swapped / "test" / other)
    again = [str(swapped) if flag == str(colours) else flag for flag in flags]
    again[again.index("--out") + 1] = str(tmp_path / "again")
    assert classify.main(again) == 0
    one, other = (torch.load(tmp_path / n / "student" / "weights.pt", weights_only=True) for n in ("run", "again"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    renamed = json.loads((tmp_path / "again" / "student" / "student.json").read_text())
    assert renamed["metrics"]["top1"] < described["metrics"]["top1"]
    assert renamed["teacher"]["sha256"] == described["teacher"]["sha256"]


def test_an_ultralytics_classifier_can_teach_and_learn(colours: Path, tmp_path: Path) -> None:
    from ultralytics import __version__
    from ultralytics.nn.tasks import ClassificationModel

    torch.manual_seed(0)
    model = ClassificationModel("yolov8n-cls.yaml", nc=3, verbose=False)
    model.names, model.args = {0: "blue", 1: "green", 2: "red"}, {}
    torch.save({"model": model, "ema": None, "train_args": {}, "version": __version__}, tmp_path / "teacher.pt")
    flags = ["--teacher", str(tmp_path / "teacher.pt"), "--student", "yolov8n-cls.yaml", "--data", str(colours)]
    flags += ["--imgsz", "32", "--epochs", "1", "--batch", "12", "--device", "cpu", "--out", str(tmp_path / "run")]
    assert classify.main([*flags, "--losses", "kd=1,at=10"]) == 0
    program = torch.export.load(tmp_path / "run" / "student" / "student.pt2").module()
    assert program(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_the_classifier_runs_in_half_precision_without_breaking_a_loss(
    arguments: Callable[..., list[str]], teacher_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[torch.dtype | None] = []

    def judge(student: Any, pixels: Any, precision: Precision, **top: int) -> float:
        judged.append(precision.amp)
        return accuracy(student, pixels, precision, **top)

    monkeypatch.setattr(training, "accuracy", judge)
    settings = ("--set", "amp=bf16", "views=2", "lr=0.01")
    flags = arguments(tmp_path / "run", *settings, "--losses", "kd=1,at=1,crd=0.1", teachers=(str(teacher_run),))
    assert classify.main(flags) == 0
    assert judged == [None, None]  # what is published is a float32 program, and is judged as one
    weights = torch.load(tmp_path / "run" / "student" / "weights.pt", weights_only=True)
    assert all(value.dtype == torch.float32 for value in weights.values())


def test_what_is_published_answers_as_the_trained_network(teacher_run: Path, colours: Path) -> None:
    folder = teacher_run / "student"
    described = json.loads((folder / "student.json").read_text())
    program = torch.export.load(folder / "student.pt2").module()
    classifier = build_classifier(TEACHER, classes=3, height=16, width=16)
    classifier.network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    for images in (torch.rand(1, 3, 16, 16), torch.rand(5, 3, 16, 16)):
        torch.testing.assert_close(program(images), classifier.eval()(images), rtol=1e-5, atol=1e-5)
    for key, name in (("sha256", "student.pt2"), ("weights_sha256", "weights.pt")):
        assert described["student"][key] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert described["task"] == "classify"
    assert described["schema"] == 1
    assert described["class_names"] == ["blue", "green", "red"]
    assert described["data"]["root"] == str(colours)
    assert (described["data"]["train"], described["data"]["val"]) == ("train", "test")
    assert described["input"] == {"height": 16, "width": 16, "fit": "stretch", "resize": 0}
    assert described["teacher"] is None
    assert described["student"]["parameters"] == classifier.parameter_count()
    right = 0
    for label, name in enumerate(described["class_names"]):
        for path in (colours / "test" / name).iterdir():
            pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 255
            right += int(program(pixels).argmax()) == label
    assert described["metrics"]["top1"] == pytest.approx(right / 24)
