"""Teacher outputs kept on disk: with a finite number of views each is computed once and read ever after."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import ultralytics
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses import Activations
from distill.output_store import OutputStore, free_bytes, make_room, stored_bytes
from distill.teacher_options import CacheOptions, TeacherOptions
from distill.teacher_running import RunningTeacher

__all__ = ["CachedTeacher", "needed_outputs", "remember_outputs"]

log = logging.getLogger(__name__)

#: What each loss reads of a teacher; a loss that is not named here gets everything.
_READ: Final[Mapping[str, tuple[str, ...]]] = {
    "response": ("scores",),
    "quality": ("scores",),
    "ld": ("boxes", "scores"),
    "iou": ("boxes", "scores"),
    "bounded": ("boxes",),
    "crosskd": ("boxes", "scores"),
    **dict.fromkeys(("feature", "cwd", "fitnets", "at", "pkd", "mgd", "rkd"), ("feats",)),
    **dict.fromkeys(("mimic", "fgd", "scored"), ("feats", "scores")),
}
_ALL: Final = ("boxes", "scores", "feats")
#: ultralytics settings that change what a view shows.
_AUGMENTATION: Final = (
    *("mosaic", "mixup", "cutmix", "copy_paste", "copy_paste_mode", "hsv_h", "hsv_s", "hsv_v", "degrees", "translate"),
    *("scale", "shear", "perspective", "flipud", "fliplr", "bgr", "single_cls", "classes", "fraction", "seed"),
)


class CachedTeacher:
    """A teacher whose outputs are read from disk where they are there, and stored where they are not.

    Called with the batch, which says the view of each image (:class:`distill.views.AugmentedViews`). Outputs are
    returned as they are stored, in 16 bits, also when they were just computed: a run is then the same whether it finds
    them or makes them. Where one image of a batch is missing the whole batch is run: rounding may depend on the
    batch, and a resumed run must repeat it.
    """

    def __init__(self, teacher: RunningTeacher, store: OutputStore, names: Sequence[str], dtype: torch.dtype) -> None:
        """Keep the outputs ``names`` of ``teacher`` in ``store`` as ``dtype``."""
        self._teacher, self.store, self._names, self._dtype = teacher, store, tuple(names), dtype

    @property
    def model(self) -> nn.Module:
        """The frozen network."""
        return self._teacher.model

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: Mapping[str, Any]) -> Activations:
        """The raw head outputs of images (batch, channels, height, width); what no loss needs is left empty."""
        entries = list(zip(batch["family"], batch["view"], batch["image"], strict=True))
        found = [self.store.read(*entry) for entry in entries]
        if any(one is None for one in found):
            made = [list(parts) for parts in zip(*self._stored_form(self._teacher(images)), strict=True)]
            for index, entry in enumerate(entries):
                if found[index] is None:
                    self.store.write(*entry, made[index])
                    found[index] = [part.cpu() for part in made[index]]
        rows = zip(*(one for one in found if one is not None), strict=True)
        return self._activations([torch.stack(row).to(images.device, non_blocking=True) for row in rows])

    def _stored_form(self, answer: Activations) -> list[Tensor]:
        """The wanted outputs in a fixed order, in the store's type and contiguous."""
        wanted: list[Tensor] = []
        for name in self._names:
            value = getattr(answer, name)
            wanted += value if isinstance(value, tuple) else (value,)
        largest = torch.finfo(self._dtype).max
        return [value.clamp(-largest, largest).to(self._dtype).contiguous() for value in wanted]

    def _activations(self, tensors: list[Tensor]) -> Activations:
        nothing = tensors[0].new_empty(0)
        parts: dict[str, Any] = {"boxes": nothing, "scores": nothing, "feats": ()}
        for name in self._names:
            parts[name] = tuple(tensors) if name == "feats" else tensors.pop(0)
        return Activations(**parts)


def needed_outputs(losses: Iterable[str], teachers: int) -> tuple[str, ...]:
    """What must be kept for these losses, out of ``boxes``, ``scores`` and ``feats``, in this order.

    Several teachers are combined by what each of them says of boxes and scores.
    """
    needed = {name for loss in losses for name in _READ.get(loss, _ALL)}
    needed |= {"boxes", "scores"} if teachers > 1 else set()
    return tuple(name for name in _ALL if name in needed)


def remember_outputs(
    teachers: Sequence[RunningTeacher], trainer: Any, losses: Iterable[str], options: TeacherOptions
) -> list[CachedTeacher]:
    """Put a store behind each teacher, saying how much it will hold.

    Args:
        teachers: not yet run.
        trainer: its training images, their size and augmentation.
        losses: names of the losses, which say what is kept.
        options: where, and how many views of an image there are.

    Raises:
        DistillError: when the disk or the limit is too small, or the images change size between batches.
    """
    if trainer.args.multi_scale or trainer.args.rect:
        raise DistillError("--cache needs images of one size: train without multi_scale and rect")
    names = needed_outputs(losses, len(teachers))
    assert options.cache is not None
    cached = [_behind_a_store(t, trainer, names, options.cache, options.views, n) for n, t in enumerate(teachers)]
    stores = [teacher.store for teacher in cached]
    _check_room(Path(options.cache.folder), stores, trainer, options.views, options.cache.limit_gb)
    return cached


def _behind_a_store(
    teacher: RunningTeacher, trainer: Any, names: Sequence[str], options: CacheOptions, views: int, index: int
) -> CachedTeacher:
    # A picture of nothing, as many as in a batch: it shows the shapes, and how fast each layout is.
    blank = torch.zeros(max(trainer.batch_size, 1), 3, trainer.args.imgsz, trainer.args.imgsz, device=trainer.device)
    layout = teacher.prepare(blank)
    dtype = torch.bfloat16 if layout.precision == "bf16" else torch.float16
    with torch.no_grad():
        answer = teacher(blank[:1])
    shapes = [tuple(value.shape[1:]) for name in names for value in _as_tuple(getattr(answer, name))]
    key = {
        "format": 1,
        "ultralytics": ultralytics.__version__,
        "teacher": options.teachers[index],
        "data": options.data,
        "imgsz": int(trainer.args.imgsz),
        "views": views,
        "outputs": {name: [list(v.shape[1:]) for v in _as_tuple(getattr(answer, name))] for name in names},
        "precision": layout.precision,
        "augmentation": {name: getattr(trainer.args, name) for name in _AUGMENTATION},
    }
    return CachedTeacher(teacher, OutputStore(Path(options.folder), key, shapes, dtype), names, dtype)


def _check_room(root: Path, stores: Sequence[OutputStore], trainer: Any, views: int, limit_gb: float | None) -> None:
    """Say how much will be kept, forget what is stale, and refuse what does not fit."""
    images = len(trainer.train_loader.dataset)
    closed = min(trainer.args.close_mosaic, trainer.epochs)
    shown = min(views, trainer.epochs - closed) + min(views, closed)
    needed = images * shown * sum(store.entry_bytes for store in stores)
    there = sum(stored_bytes(store.folder) for store in stores)
    log.info(
        "teacher cache: %d images x %d views x %.2f MB = %.2f GB, of which %.2f GB are there",
        *(images, shown, sum(store.entry_bytes for store in stores) / 1e6, needed / 1e9, there / 1e9),
    )
    advice = "give fewer --views, fewer losses, or another --cache folder"
    if limit_gb is not None:
        if needed > limit_gb * 1e9:
            raise DistillError(f"--cache needs {needed / 1e9:.2f} GB, above --cache-limit {limit_gb:g}: {advice}")
        make_room(root, [store.folder for store in stores], int(limit_gb * 1e9) - needed)
    free = free_bytes(root)
    if needed - there > free:
        raise DistillError(
            f"--cache {root} needs {(needed - there) / 1e9:.2f} GB more, its disk has {free / 1e9:.2f} GB: {advice}"
        )


def _as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
