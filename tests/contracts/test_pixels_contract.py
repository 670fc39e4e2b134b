"""What a classifier is trained on is what its bundle is given: two folders that share no code, the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")

from PIL import Image

from deploy.bundle import InputSpec
from deploy.runtime import read_image
from deploy.runtime.fit import fit_image
from distill.classification.pixels import Frame

FRAMES = [Frame(16, 16), Frame(16, 16, "crop", 19), Frame(17, 17, "crop", 20)]


def _device_pixels(frame: Frame, path: Path) -> np.ndarray:
    spec = InputSpec("images", frame.height, frame.width, fit=frame.fit, resize=frame.resize or None)
    return fit_image(read_image(path), spec)[0]


@pytest.mark.parametrize("size", [(40, 80), (61, 37), (9, 200), (16, 16), (15, 17)])
@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"{frame.fit}-{frame.height}-{frame.resize}")
def test_an_image_of_any_size_and_orientation_gives_the_same_pixels(
    size: tuple[int, int], frame: Frame, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(frame.read(tmp_path / "turned.png"), _device_pixels(frame, tmp_path / "turned.png"))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "1"])
def test_an_image_of_any_kind_gives_the_same_pixels(mode: str, tmp_path: Path) -> None:
    values = np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 50
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray((values >> 8).astype(np.uint8)).convert(mode)
    image.save(tmp_path / "grey.png")
    found = FRAMES[1].read(tmp_path / "grey.png")
    np.testing.assert_array_equal(found, _device_pixels(FRAMES[1], tmp_path / "grey.png"))
    assert found.max() > found.min()
