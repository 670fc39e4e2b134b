"""Reading an image file into RGB pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DatasetError


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
    from PIL import Image, ImageOps, UnidentifiedImageError

    file = Path(path)
    if not file.is_file():
        raise DatasetError(f"no image {file}: check the path")
    try:
        with Image.open(file) as opened:
            return np.asarray(_as_rgb(ImageOps.exif_transpose(opened)))
    except (UnidentifiedImageError, ImportError) as error:
        # ultralytics, once imported, makes Pillow look for its HEIF plugin before it gives up.
        raise DatasetError(f"{file} is not an image that Pillow reads: replace or remove it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow raises SyntaxError for a broken PNG and OSError for a truncated JPEG.
        raise DatasetError(f"{file} cannot be decoded ({error}): replace or remove it") from error


def _as_rgb(image: object) -> object:
    from PIL import Image

    assert isinstance(image, Image.Image)
    if image.mode in ("I;16", "I;16L", "I;16B", "I", "F"):
        # Pillow clips deep grey images to white when asked for 8 bits; scale them instead.
        deep = np.asarray(image, np.float64)
        top = 65535.0 if deep.max(initial=0.0) > 255.0 else 255.0
        image = Image.fromarray(np.clip(deep * (255.0 / top), 0, 255).astype(np.uint8))
    return image.convert("RGB")
