"""A classifier with its border: RGB images from 0 to 1 in, logits out, normalisation and grey conversion inside."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from distill.classification.taps import Layers, find_layers, tapped
from distill.errors import DistillError
from distill.losses import ClassActivations
from distill.losses.subclass import class_logits

__all__ = ["Classifier"]

_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601, Pillow's conversion to grey


class Classifier(nn.Module):
    """A network for image classification and what it needs to be called the same way as every other.

    Attributes:
        network: the layers alone; its state dict is what ``weights.pt`` holds.
        name: by which the same network can be built again.
        layers: where feature maps and the embedding are read.
    """

    mean: Tensor
    std: Tensor
    luma: Tensor

    def __init__(
        self,
        network: nn.Module,
        name: str,
        *,
        height: int,
        width: int,
        grey: bool = False,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.25, 0.25, 0.25),
        subclasses: int = 1,
    ) -> None:
        """Take a network for images of height x width.

        Args:
            network: maps normalised images (batch, 3 or 1, height, width) to logits.
            name: by which it is built again.
            height: of its input, in pixels.
            width: of its input, in pixels.
            grey: whether it has one input channel.
            mean: subtracted from RGB values from 0 to 1 (the first alone for a grey network).
            std: divided by.
            subclasses: logits that its last layer has for each class.

        Raises:
            DistillError: when the network cannot run on images of this size.
        """
        super().__init__()
        self.network, self.name, self.grey, self.subclasses = network, name, grey, subclasses
        channels = 1 if grey else 3
        # Not persistent: a state dict of this module holds what is learned, and nothing else.
        self.register_buffer("mean", torch.tensor(mean[:channels]).view(1, channels, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std[:channels]).view(1, channels, 1, 1), persistent=False)
        self.register_buffer("luma", torch.tensor(_LUMA).view(1, 3, 1, 1), persistent=False)
        try:
            self.layers: Layers = find_layers(network, torch.zeros(1, channels, height, width))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())[:120]
            raise DistillError(
                f"{name} cannot take images of {height} x {width} px ({reason}): give a larger --imgsz"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of RGB images (batch, 3, height, width) from 0 to 1."""
        output: Any = self.network(self._normalised(images))
        # ultralytics 8.4 answers (probabilities, logits) in evaluation, torchvision's Inception a tuple in training.
        return torch.as_tensor(output[-1] if isinstance(output, tuple) else output)

    def activations(self, images: Tensor, labels: Tensor, indices: Tensor) -> ClassActivations:
        """Run a batch and return what the losses see; ``logits`` are those of the last linear layer."""
        with tapped(self.network, self.layers) as found:
            self(images)
        return ClassActivations(
            logits=found["logits"],
            feats=tuple(found[name] for name in self.layers.maps),
            embedding=found["embedding"],
            labels=labels,
            indices=indices,
        )

    def class_logits(self, logits: Tensor) -> Tensor:
        """Logits of the classes, (batch, classes), from those of the last layer."""
        if self.subclasses == 1:
            return logits
        return class_logits(logits, logits.shape[1] // self.subclasses)

    def parameter_count(self) -> int:
        """Number of learned values."""
        return sum(p.numel() for p in self.network.parameters())

    def _normalised(self, images: Tensor) -> Tensor:
        if self.grey:
            images = (images * self.luma).sum(dim=1, keepdim=True)
        return (images - self.mean) / self.std
