"""What a training step sees: augmented batches, and the answers that a frozen teacher gives to them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from distill.classification.augment import Augmentation, epoch_order
from distill.classification.classifier import Classifier
from distill.classification.pixels import Pixels
from distill.losses import ClassActivations
from distill.whole import whole_file

__all__ = ["Answers", "Batch", "FrozenTeacher", "Precision", "Teacher", "TrainingImages"]

log = logging.getLogger(__name__)

_REMEMBERED_BYTES: Final = 3 << 30


@dataclass(frozen=True)
class Batch:
    """One training step's images.

    Attributes:
        images: RGB from 0 to 1, (batch, 3, height, width), float32, augmented, on the training's device.
        labels: (batch,), int64.
        indices: positions in the training set, (batch,), int64.
        view: which augmented version of the set they come from.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    view: int


@dataclass(frozen=True)
class Precision:
    """Where and in which precision networks run.

    Attributes:
        device: of networks and batches.
        amp: type of the mixed precision; None computes in float32.
    """

    device: torch.device
    amp: torch.dtype | None = None

    @classmethod
    def choose(cls, device: torch.device, amp: str) -> Precision:
        """Resolve the setting ``amp``; fp16 is for CUDA, on the CPU it becomes bf16."""
        if amp == "off" or (amp == "auto" and device.type == "cpu"):
            return cls(device)
        return cls(device, torch.bfloat16 if amp == "bf16" or device.type == "cpu" else torch.float16)

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last under mixed precision, where it is several times as fast; contiguous in float32."""
        return torch.contiguous_format if self.amp is None else torch.channels_last

    def context(self) -> AbstractContextManager[object]:
        """Autocast, or nothing."""
        return torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None)

    def images(self, pixels: Tensor) -> Tensor:
        """Bytes as RGB from 0 to 1, in place and order."""
        return pixels.to(self.device).float().div_(255).contiguous(memory_format=self.memory_format)


@dataclass(frozen=True)
class TrainingImages:
    """A training set with its augmentation.

    Attributes:
        pixels: the images.
        augmentation: a function of seed, view and image.
        seed: of the order.
        views: distinct views of the set, used in turn; 0 for a fresh one each epoch.
        precision: where the batches go.
        identity: changes with anything that changes what a view looks like.
    """

    pixels: Pixels
    augmentation: Augmentation
    seed: int
    views: int
    precision: Precision
    identity: str = ""

    def epoch(self, epoch: int, batch: int, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """One epoch's batches, of which each of ``world`` processes takes an equal share.

        A remainder that cannot be shared equally, or a last batch of one image (which batch norm refuses), is left
        out.
        """
        view = epoch % self.views if self.views else epoch
        order = epoch_order(len(self.pixels), self.seed, epoch)
        parts = [part[: len(part) - len(part) % world] for part in torch.split(order, batch)]
        parts = [part[rank::world] for part in parts if len(part) >= 2 * world]
        shared = torch.cat(parts) if parts else order[:0]
        yield from self._batches(shared, batch // world, view)

    def whole_view(self, view: int, batch: int) -> Iterator[Batch]:
        """All images of a view in their own order."""
        yield from self._batches(torch.arange(len(self.pixels)), batch, view)

    def _batches(self, order: Tensor, batch: int, view: int) -> Iterator[Batch]:
        for indices, pixels in self.pixels.batches(order, batch):
            images = self.precision.images(self.augmentation(pixels, indices, view))
            labels = self.pixels.labels[indices].to(self.precision.device)
            yield Batch(images, labels, indices.to(self.precision.device), view)


class Teacher(Protocol):
    """Answers a batch; never trained, never saved with a student."""

    def __call__(self, batch: Batch) -> ClassActivations:
        """What the losses compare the student with."""
        ...


class FrozenTeacher:
    """A trained classifier that answers. Not a module: nothing of it can end up in a state dict or an optimizer."""

    def __init__(self, classifier: Classifier, precision: Precision, *, sha256: str, raw: bool = False) -> None:
        """Take over a classifier; it is frozen and moved. ``raw`` answers with subclass logits, where there are any."""
        self.classifier = classifier.eval().requires_grad_(False)
        self.classifier.to(precision.device, memory_format=precision.memory_format)  # type: ignore[call-overload]
        self.sha256 = sha256
        self._precision, self._raw = precision, raw

    @torch.no_grad()
    def __call__(self, batch: Batch) -> ClassActivations:
        """Run the batch."""
        with self._precision.context():
            found = self.classifier.activations(batch.images, batch.labels, batch.indices)
        return found if self._raw else replace(found, logits=self.classifier.class_logits(found.logits))


class Answers:
    """A teacher's answers, computed once per view where views come again.

    Every view is answered whole and in order when its first batch comes, so that what a batch gets does not depend
    on the batches before it, nor on where an interrupted training went on.
    """

    def __init__(self, teacher: FrozenTeacher, images: TrainingImages, *, maps: bool, folder: Path | None) -> None:
        """Remember logits and embeddings, and feature maps where ``maps``.

        Args:
            teacher: who answers.
            images: the training set, with repeating views.
            maps: whether feature maps are asked for.
            folder: where answers without maps are kept for the next training that asks the same.
        """
        self._teacher, self._images, self._maps = teacher, images, maps
        self._folder = None if maps else folder
        self._views: dict[int, tuple[Tensor, ...]] = {}

    @staticmethod
    def worth_it(teacher: FrozenTeacher, images: TrainingImages, *, maps: bool) -> bool:
        """Whether views repeat, images are at hand, and the answers fit into 3 GiB."""
        if not images.views or not images.pixels.in_memory or not len(images.pixels):
            return False
        example = next(images.whole_view(0, 1))
        per_image = sum(part.nbytes for part in _parts(teacher(example), maps=maps))
        return per_image * len(images.pixels) * images.views <= _REMEMBERED_BYTES

    def __call__(self, batch: Batch) -> ClassActivations:
        """Look the batch up."""
        if batch.view not in self._views:
            self._views[batch.view] = self._load(batch.view)
        logits, embedding, *feats = (part[batch.indices] for part in self._views[batch.view])
        return ClassActivations(logits, tuple(feats), embedding, batch.labels, batch.indices)

    def _load(self, view: int) -> tuple[Tensor, ...]:
        if self._folder is None:
            return self._answer(view)
        key = hashlib.sha256(f"{self._teacher.sha256} {self._images.identity} {view}".encode()).hexdigest()[:32]
        path = self._folder / f"{key}.pt"
        if path.is_file():
            return tuple(torch.load(path, map_location=self._images.precision.device, weights_only=True))
        found = self._answer(view)
        self._folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            torch.save(list(found), partial)
        return found

    def _answer(self, view: int) -> tuple[Tensor, ...]:
        whole: list[Tensor] = []
        start = 0
        for batch in self._images.whole_view(view, 128):
            parts = _parts(self._teacher(batch), maps=self._maps)
            if not whole:  # filled in place: a list to concatenate would need the memory twice
                whole = [part.new_empty((len(self._images.pixels), *part.shape[1:])) for part in parts]
            for target, part in zip(whole, parts, strict=True):
                target[start : start + len(part)] = part
            start += len(batch.labels)
        return tuple(whole)


def _parts(answer: ClassActivations, *, maps: bool) -> tuple[Tensor, ...]:
    return (answer.logits, answer.embedding, *(answer.feats if maps else ()))
