"""Reading image files: what is read as what, and what is refused before any of it is decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.errors import DatasetError, ImageTooLargeError
from deploy.runtime import read_image
from deploy.runtime.image import image_files, images_below


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (50, 40)).save(path)
    assert read_image(path, most_pixels=2000).shape == (40, 50, 3)

    def decoded(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    with pytest.raises(ImageTooLargeError) as caught:
        read_image(path, most_pixels=1999)
    assert str(caught.value) == f"{path} has 50 x 40 pixels, at most 1999 are taken"


def test_only_the_formats_asked_for_are_taken(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    for name in ("a.png", "a.bmp"):
        np.testing.assert_array_equal(read_image(tmp_path / name), pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", formats=("JPEG", "PNG")), pixels)
    with pytest.raises(DatasetError, match=r"a\.bmp cannot be read as an image"):
        read_image(tmp_path / "a.bmp", formats=("JPEG", "PNG"))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16", "F"])
def test_every_mode_becomes_rgb_in_one_piece(tmp_path: Path, mode: str) -> None:
    image = Image.new("L", (12, 7), 255)
    image.paste(0, (0, 0, 6, 7))
    image = Image.fromarray(np.asarray(image, np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    assert image.mode == mode
    image.save(tmp_path / "a.tif")
    met = read_image(tmp_path / "a.tif")
    assert met.dtype == np.uint8
    assert met.flags.c_contiguous
    np.testing.assert_array_equal(met, np.repeat([[[0] * 3] * 6 + [[255] * 3] * 6], 7, axis=0))


def test_a_folders_images_are_found_below_it_but_for_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.JPG", "1.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert images_below(tmp_path) == [tmp_path / "1.png", tmp_path / "b/2.JPG"]
    (tmp_path / "empty").mkdir()
    assert image_files(tmp_path / "empty") == []
    with pytest.raises(DatasetError, match=r"empty holds no images \(\.bmp, "):
        images_below(tmp_path / "empty")
