"""An easy problem for classifiers, and a teacher trained on it, made once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="distillation needs the [train] extra")
pytest.importorskip("torchvision", reason="distillation needs the [train] extra")
pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from distill import classify  # noqa: E402
from distill.classification import publish  # noqa: E402

TEACHER, STUDENT = "cnn-12-24", "cnn-6-12"


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish the weights alone: exporting takes most of the time of so small a run, and is tested by itself."""
    monkeypatch.setattr(publish, "export_program", lambda student, path, **size: path.write_bytes(b"not exported"))


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An easy image folder: three classes told apart by colour, 16 px; 12 training and 8 test images each."""
    root = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(3)
    for split, count in (("train", 12), ("test", 8)):
        for channel, name in enumerate(("blue", "green", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 140, (16, 16, 3))
                pixels[..., 2 - channel] += 90
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def arguments(colours: Path) -> Callable[..., list[str]]:
    """Arguments of a small run into a folder: 36 images in batches of 8, which makes 5 steps an epoch."""

    def build(out: Path, *more: str, method: str = "kd", teachers: tuple[str, ...] = (TEACHER,)) -> list[str]:
        taught = [] if method in {"none", "mutual"} else ["--teacher", *teachers]
        common = ["--student", STUDENT, "--data", str(colours), "--method", method, "--device", "cpu"]
        settings = [] if "--set" in more else ["--set", "lr=0.01", "warmup=0"]
        return [*common, *taught, "--epochs", "6", "--batch", "8", "--out", str(out), *settings, *more]

    return build


@pytest.fixture(scope="session")
def teacher_run(arguments: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher trained by the command, with its weights of two epochs kept."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    flags = ("--student", TEACHER, "--set", "lr=0.01", "teach_epochs=3+6")
    assert classify.main(arguments(out, *flags, method="none")) == 0
    return out
