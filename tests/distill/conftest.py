"""A tiny detection problem and an untrained teacher for it, made once per session."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="distillation needs the [train] extra")
pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")

from PIL import Image  # noqa: E402
from ultralytics.nn.tasks import DetectionModel  # noqa: E402
from ultralytics.utils import DEFAULT_CFG  # noqa: E402

from distill import yolo  # noqa: E402
from distill.trainer import DistillationTrainer  # noqa: E402

CLASSES = ("red", "blue")
_COLOURS = ((230, 40, 40), (40, 40, 230))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep the suite off the other cores: the models are tiny.

    A training sets the number anew, and a process of its own takes it from the environment: where the two differ, sums
    differ in their last bits, and so do the weights.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.training._THREADS", 1)
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured squares on noise: 10 training and 4 validation images of 64 px, two classes; returns the yaml."""
    root = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            image, label = _scene(rng)
            image.save(root / "images" / split / f"{index}.png")
            (root / "labels" / split / f"{index}.txt").write_text(label)
    path = root / "toy.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: {0: red, 1: blue}\n")
    return path


@pytest.fixture(scope="session")
def arguments(toy_data: Path, toy_teacher: Path) -> Callable[..., list[str]]:
    """Arguments of a small distillation into a folder: batches of 4, 4 and 2, gradients summed over several."""

    def build(out: Path, *more: str, plain: bool = False) -> list[str]:
        taught = ["--losses", "none"] if plain else ["--teacher", str(toy_teacher), "--teacher-precision", "fp32"]
        common = ["--student", "yolov8n.yaml", "--data", str(toy_data), "--epochs", "4", "--imgsz", "64"]
        return [*common, *taught, "--batch", "4", "--device", "cpu", "--out", str(out), *more]

    return build


@pytest.fixture(scope="session")
def finished_run(arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished distillation of 4 epochs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert yolo.main(arguments(out)) == 0
    return out


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], pytest.MonkeyPatch]:
    """Makes a training meet Ctrl-C once it has saved that many epochs; undo the returned patch to go on."""

    def patch(epochs: int) -> pytest.MonkeyPatch:
        save = DistillationTrainer.save_model

        def save_and_interrupt(self: DistillationTrainer) -> bool:
            saved = save(self)
            if self.epoch + 1 == epochs:
                raise KeyboardInterrupt
            return saved

        monkeypatch.setattr(DistillationTrainer, "save_model", save_and_interrupt)
        return monkeypatch

    return patch


@pytest.fixture
def interrupted_run(
    arguments: Callable[..., list[str]], interrupt_after: Callable[[int], pytest.MonkeyPatch], tmp_path: Path
) -> Path:
    """The folder of the same distillation, stopped by Ctrl-C after two of its epochs."""
    out = tmp_path / "cut"
    patch = interrupt_after(2)
    assert yolo.main(arguments(out)) == 130
    patch.undo()
    return out


@pytest.fixture
def trainer_of(tmp_path: Path) -> Callable[[Any], SimpleNamespace]:
    """What ultralytics' trainer of a model for the toy data's classes looks like to a callback."""

    def build(model: Any) -> SimpleNamespace:
        model.args = DEFAULT_CFG
        data = {"names": dict(enumerate(CLASSES))}
        place = {"device": torch.device("cpu"), "amp": False, "save_dir": tmp_path}
        return SimpleNamespace(model=model, data=data, args=DEFAULT_CFG, epoch=0, epochs=10, **place)

    return build


@pytest.fixture(scope="session")
def read_results() -> Callable[[Path], list[dict[str, str]]]:
    """Reads a run's results.csv as rows, without the column that differs from run to run."""

    def read(out: Path) -> list[dict[str, str]]:
        with (out / "train" / "results.csv").open() as file:
            return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]

    return read


@pytest.fixture
def toy_copy(toy_data: Path, tmp_path: Path) -> Path:
    """A copy of the toy data that a test may spoil; returns its yaml."""
    return (
        Path(shutil.copytree(toy_data.parent, tmp_path / "toy", ignore=shutil.ignore_patterns("*.cache"))) / "toy.yaml"
    )


@pytest.fixture(scope="session")
def toy_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained YOLOv8s that knows the two classes."""
    return _save_model(tmp_path_factory.mktemp("teacher") / "teacher.pt", "yolov8s.yaml", CLASSES)


@pytest.fixture(scope="session")
def save_model() -> Callable[..., Path]:
    """Saves a randomly initialised detector: (path, yaml or config, class names) -> path."""
    return _save_model


def _save_model(path: Path, config: str | dict[str, Any], classes: tuple[str, ...] = CLASSES) -> Path:
    torch.manual_seed(7)
    model = DetectionModel(config, nc=len(classes), verbose=False)
    model.names = dict(enumerate(classes))
    for kind in ("cv2", "cv3"):  # an untrained head says nearly nothing: there would be nothing to teach
        for branch in getattr(model.model[-1], kind, None) or ():
            torch.nn.init.normal_(branch[-1].bias, std=2.0)
    torch.save({"model": model.half(), "train_args": {}, "epoch": -1}, path)
    return path


def _scene(rng: np.random.Generator) -> tuple[Image.Image, str]:
    pixels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
    lines = []
    for _ in range(2):
        class_id = int(rng.integers(0, 2))
        width, height = (int(v) for v in rng.integers(14, 26, 2))
        x, y = int(rng.integers(0, 64 - width)), int(rng.integers(0, 64 - height))
        pixels[y : y + height, x : x + width] = _COLOURS[class_id]
        lines.append(f"{class_id} {(x + width / 2) / 64} {(y + height / 2) / 64} {width / 64} {height / 64}")
    return Image.fromarray(pixels), "\n".join(lines) + "\n"
