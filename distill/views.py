"""A finite number of augmented views of each training image, which repeat exactly."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from distill.errors import DistillError

__all__ = ["AugmentedViews", "ViewSampler", "show_views"]

#: Decoded images kept in memory. A view's mosaic partners come from the whole set, and not from the images that
#: happened to be loaded last, so that without memory each would be read from disk again.
_MEMORY_BYTES: Final = 2**30


class AugmentedViews(Dataset[dict[str, Any]]):
    """An ultralytics training set whose augmentation is a function of seed, image and view alone.

    ultralytics draws from global generators, and mosaic's partners from the images loaded last: no augmented image
    ever repeats. Here image i in view v is augmented with generators seeded by (seed, i, v), the partners of mosaic,
    mixup, cutmix and copy-paste drawn from the whole set with them; v comes with the index, from a
    :class:`ViewSampler`. The global generators are left as they were. Once mosaic is closed the views are others: the
    *family* counts how often the augmentation changed.

    Everything else is the wrapped data set's.
    """

    def __init__(self, dataset: Any, views: int, seed: int) -> None:
        """Wrap ``dataset``, a YOLODataset that augments."""
        self.dataset, self.views, self.seed, self.family = dataset, views, seed, 0
        self._remember_images()
        _draw_from_the_whole_set(dataset.transforms)

    def __getitem__(self, key: int) -> dict[str, Any]:
        """The sample ``view * len(self) + index``, with ``view``, ``image`` (the index) and ``family`` added."""
        view, index = divmod(int(key), len(self))
        with _seeded(f"{self.seed} {self.family} {view} {index}"):
            sample: dict[str, Any] = self.dataset[index]
        return {**sample, "view": view, "image": index, "family": self.family}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # while it is unpickled there is nothing to ask
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def close_mosaic(self, hyp: Any) -> None:
        """End mosaic, mixup, cutmix and copy-paste: another family of views."""
        self.dataset.close_mosaic(hyp)
        _draw_from_the_whole_set(self.dataset.transforms)
        self.family += 1

    def _remember_images(self) -> None:
        side = max(self.dataset.imgsz) if isinstance(self.dataset.imgsz, (tuple, list)) else self.dataset.imgsz
        fitting = _MEMORY_BYTES // (3 * side * side)
        # One more than there are images is never reached: nothing is forgotten.
        self.dataset.max_buffer_length = max(self.dataset.max_buffer_length, min(fitting, len(self.dataset) + 1))


class ViewSampler(Sampler[int]):
    """Turns a sampler's image indices into indices of views: epoch e shows view e mod K of every image."""

    def __init__(self, sampler: Sampler[int], images: int, views: int) -> None:
        """Wrap ``sampler``, which runs through ``images`` images once an epoch."""
        self.sampler, self._images, self._views = sampler, images, views
        self.next_epoch = 0

    def __iter__(self) -> Iterator[int]:
        """One epoch; the next call is the next epoch, unless ``next_epoch`` is set."""
        view = self.next_epoch % self._views
        self.next_epoch += 1
        for index in self.sampler:
            yield view * self._images + index

    def __len__(self) -> int:
        """Images of an epoch."""
        return len(self.sampler)  # type: ignore[arg-type]


def show_views(loader: Any) -> ViewSampler:
    """Make ultralytics' training loader over :class:`AugmentedViews` show view e mod K in epoch e; return its sampler.

    Loading processes read ahead into the next epoch, which is why the sampler counts and a sample says its own view.
    """
    batches = loader.batch_sampler.sampler  # ultralytics repeats torch's BatchSampler for ever
    sampler = ViewSampler(batches.sampler, len(loader.dataset), loader.dataset.views)
    batches.sampler = sampler
    return sampler


@contextmanager
def _seeded(text: str) -> Iterator[None]:
    """Seed Python's and numpy's global generators, which ultralytics augments with, and put them back afterwards."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _draw_from_the_whole_set(transforms: Any) -> None:
    """Let every mosaic among the transforms draw its partners from all images.

    Raises:
        DistillError: when Albumentations takes part, which has generators of its own.
    """
    for one in _all(transforms):
        if hasattr(one, "buffer_enabled"):
            one.buffer_enabled = False
        if type(one).__name__ == "Albumentations" and one.transform is not None:
            raise DistillError(
                "views do not repeat with the package albumentations installed, which draws from generators of its "
                "own: uninstall it, or train without --views and --cache"
            )


def _all(transforms: Any) -> Iterator[Any]:
    """A transform and all that it is made of."""
    yield transforms
    for inner in (*getattr(transforms, "transforms", ()), getattr(transforms, "pre_transform", None)):
        if inner is not None:
            yield from _all(inner)
