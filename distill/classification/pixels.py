"""Images as tensors: decoded once into memory where they fit, else by torchvision and a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import DatasetFolder

from distill.classification.folders import Split
from distill.errors import DistillError

__all__ = ["Frame", "Pixels"]

_IN_MEMORY_BYTES: Final = 2 << 30


@dataclass(frozen=True)
class Frame:
    """How an image becomes an input of the network, in training and on the device alike.

    Resizing is bilinear and antialiased and the crop central, as by torchvision's ``Resize`` and ``CenterCrop``: the
    pixels that ``deploy.runtime`` gives the bundle, and those that pretrained networks were trained on.

    Attributes:
        height, width: of the input, in pixels.
        fit: ``stretch`` resizes to height x width; ``crop`` resizes the short side to ``resize`` pixels and takes the
            centre.
        resize: short side before the crop, in pixels.
    """

    height: int
    width: int
    fit: Literal["stretch", "crop"] = "stretch"
    resize: int = 0

    def read(self, path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Decode one image as RGB, turned as its EXIF says, shape (height, width, 3), uint8.

        Raises:
            DistillError: when it cannot be decoded.
        """
        try:
            with Image.open(path) as image:
                pixels = np.asarray(_as_rgb(ImageOps.exif_transpose(image)))
        except (UnidentifiedImageError, ModuleNotFoundError) as error:
            # The open() that ultralytics puts into Pillow asks for pi-heif when it does not know a file.
            raise DistillError(f"{path} cannot be read as an image: replace or remove it") from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DistillError(f"{path} cannot be decoded ({error}): replace or remove it") from error
        if self.fit == "crop":
            # Rounded as torchvision does: the long side down, the corner half to even.
            height, width = (side * self.resize // min(pixels.shape[:2]) for side in pixels.shape[:2])
            pixels = _resized(pixels, height, width)
            top, left = round((height - self.height) / 2), round((width - self.width) / 2)
            pixels = pixels[top : top + self.height, left : left + self.width]
        return _resized(pixels, self.height, self.width)


class Pixels:
    """The images of one split, in any order, as uint8 batches (n, 3, height, width)."""

    def __init__(self, split: Split, frame: Frame, *, workers: int = 0) -> None:
        """Decode everything now where it takes at most 2 GiB; otherwise images are decoded when they are asked for.

        Raises:
            DistillError: for an image that cannot be decoded.
        """
        self.labels = split.labels
        self._split, self._frame, self._workers = split, frame, workers
        fits = len(split.files) * 3 * frame.height * frame.width <= _IN_MEMORY_BYTES
        self._decoded = _decode_all(split, frame) if fits else None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        """Whether every image is decoded already."""
        return self._decoded is not None

    def batches(self, order: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (positions, pixels) for consecutive parts of ``order``, the last one perhaps smaller."""
        parts = torch.split(order, batch)
        if self._decoded is not None:
            for positions in parts:
                yield positions, self._decoded[positions]
            return
        loader: Any = DataLoader(
            _Decoder(self._split, self._frame),
            batch_sampler=[[int(i) for i in part] for part in parts],
            num_workers=self._workers,
        )
        for positions, (pixels, _) in zip(parts, loader, strict=True):
            yield positions, pixels


class _Decoder(DatasetFolder):  # type: ignore[misc]
    """torchvision's folder data set over files that are listed already."""

    def __init__(self, split: Split, frame: Frame) -> None:
        """Take the files and labels as they are, without walking the folders again."""
        self.samples = [(str(path), int(label)) for path, label in zip(split.files, split.labels, strict=True)]
        self._frame = frame
        self.transform = self.target_transform = None

    def loader(self, path: str) -> Tensor:
        """Decode one image, shape (3, height, width); a method, because loading processes must be able to pickle it."""
        return torch.from_numpy(self._frame.read(Path(path)).copy()).permute(2, 0, 1)


def _decode_all(split: Split, frame: Frame) -> Tensor:
    pixels = torch.empty((len(split.files), 3, frame.height, frame.width), dtype=torch.uint8)
    for index, path in enumerate(split.files):
        pixels[index] = torch.from_numpy(frame.read(path).copy()).permute(2, 0, 1)
    return pixels


def _resized(
    pixels: np.ndarray[Any, np.dtype[np.uint8]], height: int, width: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16L", "I;16B", "I", "F"):  # Pillow clips deep grey images to white
        deep = np.asarray(image, np.float64)
        top = 65535.0 if deep.max(initial=0.0) > 255.0 else 255.0
        image = Image.fromarray(np.clip(deep * (255.0 / top), 0, 255).astype(np.uint8))
    return image.convert("RGB")
