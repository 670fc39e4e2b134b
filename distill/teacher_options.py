"""What a user may ask of how teachers are run and remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distill.errors import DistillError
from distill.losses import LOGIT_LOSSES

__all__ = ["CacheOptions", "TeacherOptions", "refuse_options"]


@dataclass(frozen=True)
class CacheOptions:
    """Where teacher outputs are kept.

    Attributes:
        folder: of this and other runs' outputs.
        teachers: SHA-256 of each teacher's checkpoint.
        data: SHA-256 of the training data, as in the recipe.
        limit_gb: what the folder may hold in all, in 10^9 bytes; None: what the disk can.
    """

    folder: str
    teachers: tuple[str, ...]
    data: str
    limit_gb: float | None = None


@dataclass(frozen=True)
class TeacherOptions:
    """How teachers are run.

    Attributes:
        precision: one of ``teacher_speed.PRECISIONS``.
        compiled: whether ``torch.compile`` makes them.
        imgsz: longer side of the images that they see, in pixels; None: the student's.
        views: how many augmented views of each image there are; 0: as many as epochs, none repeats.
        cache: where their outputs are kept; None: nowhere.
    """

    precision: str = "auto"
    compiled: bool = False
    imgsz: int | None = None
    views: int = 0
    cache: CacheOptions | None = None


def refuse_options(options: TeacherOptions, losses: Mapping[str, float], imgsz: int) -> None:
    """Refuse what cannot work, before anything is loaded.

    A smaller image has fewer anchors, and each anchor says its distances in strides of that image: what it says of an
    object cannot be compared with what the student's anchors say. Feature maps can be, at the smaller one's size.

    Args:
        options: what was asked.
        losses: weights by name.
        imgsz: the student's image size in pixels.

    Raises:
        DistillError: for a teacher's image size above the student's, or with a loss that compares anchor by anchor;
            for a cache without a number of views.
    """
    if options.cache is not None and not options.views:
        raise DistillError(
            "--cache without --views: no augmented image repeats, so there is nothing to remember; add --views 8"
        )
    if options.imgsz is None:
        return
    if options.imgsz > imgsz:
        raise DistillError(f"--teacher-imgsz {options.imgsz} is above --imgsz {imgsz}: give a smaller one, or drop it")
    if anchored := [name for name in losses if name in (*LOGIT_LOSSES, "crosskd")]:
        raise DistillError(
            f"--teacher-imgsz does not go with {', '.join(anchored)}, which compare anchor by anchor: "
            "give losses on features alone, such as --losses cwd=0.25"
        )
