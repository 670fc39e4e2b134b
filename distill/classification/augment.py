"""Augmentation that depends on (seed, view, image) alone, so that an interrupted training goes on exactly."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import DistillError

__all__ = ["AUGMENTATIONS", "Augmentation", "epoch_order"]

AUGMENTATIONS: Final = ("crop+flip", "crop", "flip", "none")
#: So that what is drawn for one is not drawn again for the other.
_VIEW_STREAM: Final = 1
_ORDER_STREAM: Final = 2


class Augmentation:
    """Zero-pads by an eighth of the side and cuts a window out; mirrors half of the images.

    On 32 px images that is the crop with padding 4 and flip of He et al. 2016, section 4.2. What an image gets is a
    function of the seed, the view and its position in the training set: not of the batch, the process or the past.
    """

    def __init__(self, kind: str, seed: int, images: int) -> None:
        """Draw for a training set of that many images.

        Raises:
            DistillError: for an unknown kind.
        """
        if kind not in AUGMENTATIONS:
            raise DistillError(f"unknown augment {kind!r}: the known ones are {', '.join(AUGMENTATIONS)}")
        self._crop, self._flip = "crop" in kind, "flip" in kind
        self._seed, self._images = seed, images
        self._drawn: tuple[int, Tensor] | None = None

    def __call__(self, pixels: Tensor, indices: Tensor, view: int) -> Tensor:
        """Augment a batch.

        Args:
            pixels: (batch, 3, height, width), uint8.
            indices: positions of the images in the training set, shape (batch,).
            view: which of the endless augmented versions of the set; the epoch, as a rule.

        Returns:
            The same shape and type.
        """
        if not (self._crop or self._flip):
            return pixels
        height, width = pixels.shape[2:]
        draws = self._draws(view)[indices]  # (batch, 3), 0 to 1: row, column, mirror
        pad = max(height, width) // 8 if self._crop else 0
        shift = (draws[:, :2] * (2 * pad + 1)).long()
        rows = shift[:, :1] + torch.arange(height)
        columns = torch.arange(width).expand(len(pixels), width)
        if self._flip:
            columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
        columns = shift[:, 1:2] + columns
        padded = F.pad(pixels, (pad, pad, pad, pad))
        image = torch.arange(len(pixels))[:, None, None]
        return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def _draws(self, view: int) -> Tensor:
        if self._drawn is None or self._drawn[0] != view:
            generator = _generator(self._seed, view, _VIEW_STREAM)
            self._drawn = (view, torch.rand((self._images, 3), generator=generator))
        return self._drawn[1]


def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits the training set: a permutation that depends on seed and epoch alone."""
    return torch.randperm(images, generator=_generator(seed, epoch, _ORDER_STREAM))


def _generator(seed: int, step: int, stream: int) -> torch.Generator:
    """An independent generator for each (seed, step, stream)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xC2B2AE3D27D4EB4F + stream * 0x165667B19E3779F9) % (1 << 63)
    return torch.Generator().manual_seed(mixed)
