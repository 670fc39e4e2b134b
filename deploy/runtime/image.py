"""Image files: finding them, their size, and reading them into RGB pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DatasetError, ImageTooLargeError

if TYPE_CHECKING:  # at run time Pillow is imported when the first image is read
    from PIL.Image import Image

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_EXIF_ORIENTATION = 0x0112
_EXIF_TURNED = (5, 6, 7, 8)  # values that swap width and height


def image_files(folder: Path) -> list[Path]:
    """Image files below `folder`, sorted; hidden ones and those in hidden folders left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def images_below(folder: Path) -> list[Path]:
    """`image_files`, at least one.

    Raises:
        DatasetError: there is none.
    """
    found = image_files(folder)
    if not found:
        raise DatasetError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def read_image(
    path: str | Path, *, most_pixels: int | None = None, formats: tuple[str, ...] | None = None
) -> NDArray[np.uint8]:
    """Decode an image file.

    Args:
        path: any format Pillow reads; grey, palette and RGBA images become RGB, the EXIF orientation is
            applied, only the first frame of an animation is read.
        most_pixels: refuse a larger image before any of it is decoded.
        formats: take these of Pillow's formats alone, e.g. ("JPEG", "PNG"): for files that come from strangers.

    Returns:
        (height, width, 3) uint8 RGB, C-contiguous.

    Raises:
        DatasetError: no such file, not an image, truncated, or too large to be real.
        ImageTooLargeError: it has more than `most_pixels`.
    """
    from PIL import ImageOps

    with _opened(Path(path), formats) as opened:
        width, height = opened.size
        if most_pixels is not None and width * height > most_pixels:
            raise ImageTooLargeError(f"{path} has {width} x {height} pixels, at most {most_pixels} are taken")
        ImageOps.exif_transpose(opened, in_place=True)  # without a copy of what is upright already
        return np.asarray(_as_rgb(opened))


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels as `read_image` gives them.

    They are read from the file's header, but for a PNG whose header has no EXIF: that may follow the pixels.

    Raises:
        DatasetError: as `read_image`, but for damage behind the header.
    """
    with _opened(Path(path)) as opened:
        width, height = opened.size
        turned = opened.getexif().get(_EXIF_ORIENTATION) in _EXIF_TURNED
    return (height, width) if turned else (width, height)


@contextmanager
def _opened(file: Path, formats: tuple[str, ...] | None = None) -> Iterator[Image]:
    """The opened file; what Pillow raises while it is open becomes a `DatasetError`."""
    from PIL import Image, UnidentifiedImageError

    if not file.is_file():
        raise DatasetError(f"no image {file}: check the path")
    try:
        with Image.open(file, formats=formats) as opened:
            yield opened
    except (UnidentifiedImageError, ModuleNotFoundError) as error:
        # Where ultralytics 8.4 is imported, Pillow's open() asks for pi-heif when it does not know a file.
        raise DatasetError(f"{file} cannot be read as an image: replace or remove it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for a broken PNG and OSError for a truncated JPEG.
        raise DatasetError(f"{file} cannot be decoded ({error}): replace or remove it") from error


def _as_rgb(image: Image) -> Image:
    from PIL.Image import fromarray

    if image.mode in ("I;16", "I;16L", "I;16B", "I", "F"):
        # Pillow clips deep grey images to white when asked for 8 bits; scale them instead.
        deep = np.asarray(image, np.float64)
        top = 65535.0 if deep.max(initial=0.0) > 255.0 else 255.0
        image = fromarray(np.clip(deep * (255.0 / top), 0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
