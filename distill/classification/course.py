"""The small convolutional pairs of the course, with exactly the parameters of the well-known Keras example."""

from __future__ import annotations

import re
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["COURSE_NAMES", "CourseCnn", "course_widths"]

#: Names of the course's own sizes. ``cnn-A-B`` and ``grey-cnn-A-B`` are the same network with other widths, for
#: teacher assistants.
COURSE_NAMES: Final = {
    "course-cifar10-teacher": "cnn-256-512",  # 1,515,018 parameters on 32 px and 10 classes
    "course-cifar10-student": "cnn-64-256",  # 313,354
    "course-mnist-teacher": "grey-cnn-256-512",  # 1,433,610 on 28 px and 10 classes
    "course-mnist-student": "grey-cnn-16-32",  # 20,490
}


class CourseCnn(nn.Module):
    """Conv 3x3/2, LeakyReLU(0.2), MaxPool 2x2/1, Conv 3x3/2, Flatten, Linear; all layers padded to "same".

    The network of the Keras example "Knowledge Distillation" (Borup 2020). As there, nothing but the flattening
    follows the second convolution. "Same" padding of a stride of 2 or of an even window puts the extra row and column
    at the bottom right.
    """

    def __init__(self, widths: tuple[int, int], *, channels: int, classes: int, height: int, width: int) -> None:
        """Build for images (channels, height, width) with the given widths of the two convolutions."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], kernel_size=3, stride=2)
        self.act = nn.LeakyReLU(0.2)
        self.pool = _SamePool()
        self.conv2 = nn.Conv2d(widths[0], widths[1], kernel_size=3, stride=2)
        self.fc = nn.Linear(widths[1] * _quarter(height) * _quarter(width), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, height, width)."""
        maps = self.pool(self.act(self.conv1(_pad_same(images))))
        return torch.as_tensor(self.fc(self.conv2(_pad_same(maps)).flatten(start_dim=1)))


def course_widths(name: str) -> tuple[int, tuple[int, int]] | None:
    """Image channels and the two widths that a name stands for; None for any other name."""
    match = re.fullmatch(r"(grey-)?cnn-([1-9]\d{0,3})-([1-9]\d{0,3})", COURSE_NAMES.get(name, name))
    return None if match is None else (1 if match[1] else 3, (int(match[2]), int(match[3])))


class _SamePool(nn.Module):
    """The largest of each cell and its right, lower and lower-right neighbours, as far as there are any."""

    def forward(self, maps: Tensor) -> Tensor:
        # Padded on both sides by the pooling itself, whose border is no number that a quantiser could see; the
        # first row and column, which pair the border with the first cell, are dropped.
        return torch.as_tensor(F.max_pool2d(maps, kernel_size=2, stride=1, padding=1)[:, :, 1:, 1:])


def _pad_same(images: Tensor) -> Tensor:
    """Zeros as TensorFlow adds them before a 3x3 convolution of stride 2: below and right first."""
    height, width = images.shape[2:]
    rows, columns = 1 + height % 2, 1 + width % 2  # in total: 1 for an even side, 2 for an odd one
    return F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _quarter(side: int) -> int:
    return -(-side // 4)
