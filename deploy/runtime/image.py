"""Reading an image file into RGB pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DatasetError

if TYPE_CHECKING:  # at run time Pillow is imported when the first image is read
    from PIL.Image import Image

_EXIF_ORIENTATION = 0x0112
_EXIF_TURNED = (5, 6, 7, 8)  # values that swap width and height


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Decode an image file.

    Args:
        path: any format Pillow reads; grey, palette and RGBA images become RGB, the EXIF orientation is
            applied, only the first frame of an animation is read.

    Returns:
        (height, width, 3) uint8 RGB, C-contiguous.

    Raises:
        DatasetError: no such file, not an image, truncated, or too large to be real.
    """
    from PIL import ImageOps

    with _opened(Path(path)) as opened:
        return np.asarray(_as_rgb(ImageOps.exif_transpose(opened)))


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels as `read_image` gives them, from the file's header alone.

    Raises:
        DatasetError: as `read_image`, but for damage behind the header.
    """
    with _opened(Path(path)) as opened:
        width, height = opened.size
        turned = opened.getexif().get(_EXIF_ORIENTATION) in _EXIF_TURNED
    return (height, width) if turned else (width, height)


@contextmanager
def _opened(file: Path) -> Iterator[Image]:
    """The opened file; what Pillow raises while it is open becomes a `DatasetError`."""
    from PIL import Image, UnidentifiedImageError

    if not file.is_file():
        raise DatasetError(f"no image {file}: check the path")
    try:
        with Image.open(file) as opened:
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
    return image.convert("RGB")
