"""Which image files a data set may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["IMAGE_SUFFIXES", "image_files"]

#: The kinds that deploying reads as well: calibration and verification see every image of the data set.
IMAGE_SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def image_files(folder: Path) -> list[Path]:
    """Image files below ``folder``, sorted; hidden ones and those in hidden folders left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
