"""A YOLOv8 detector or segmenter cut before the decode.

The head's last convolutions are the outputs: per pyramid level one tensor for the boxes (DFL logits, Generalized Focal
Loss, Li et al. 2020, section 3.2), one for the classes (logits) and, of a segmenter, one for the mask coefficients
(YOLACT, Bolya et al. 2019, section 3.2), whose prototypes are one more tensor. Joined into one tensor, boxes in 0..640
and scores in 0..1 would have to share one int8 scale, which rounds every score to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy.bundle import OutputSpec
from deploy.checkpoint import Body, Checkpoint, check_class_names
from deploy.errors import StudentError
from deploy.manifest_checks import PROTOTYPE_STRIDE

STRIDES = (8, 16, 32)
HEADS = {"Detect": "detect", "Segment": "segment"}


class RawHeads(nn.Module):
    """A YOLOv8 network whose head returns its raw tensors."""

    def __init__(self, layers: Sequence[Any], saved: Sequence[int]) -> None:
        """Take over the layers of an ultralytics model, the last of which is a `Detect` or `Segment`; see `Body`."""
        super().__init__()
        head: Any = layers[-1]
        self.body = Body(layers, saved)
        self.box_branches, self.class_branches = head.cv2, head.cv3
        segments = type(head).__name__ == "Segment"
        self.mask_branches = head.cv4 if segments else nn.ModuleList()
        self.prototypes = head.proto if segments else None

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, 3, H, W) float in 0..1 to tensors (1, channels, h, w) of all levels.

        Returns:
            Box logits (4 * reg_max channels), class logits and, for a segmenter, mask coefficients, each finest level
            first; then, for a segmenter, the prototypes.
        """
        levels = self.body(images)
        outputs: list[torch.Tensor] = []
        for branches in (self.box_branches, self.class_branches, self.mask_branches):
            outputs += [branch(level) for branch, level in zip(branches, levels, strict=False)]
        if self.prototypes is not None:
            outputs.append(self.prototypes(levels[0]))
        return tuple(outputs)


def raw_heads(checkpoint: Checkpoint, path: Path) -> tuple[RawHeads, tuple[OutputSpec, ...]]:
    """Fuse the BatchNorms of a detector or segmenter, and cut it before the decode.

    Raises:
        StudentError: not a network of this kind.
    """
    head = checkpoint.head
    _check_head(head, path)
    check_class_names(checkpoint.class_names, head.nc, path)
    checkpoint.model.fuse(verbose=False)
    network = RawHeads(list(checkpoint.model.model), checkpoint.model.save)
    return network, _outputs(head)


def _check_head(head: Any, checkpoint: Path) -> None:
    if getattr(head, "one2one_cv2", None) is not None:
        raise StudentError(f"{checkpoint} has an end-to-end head (YOLOv10, YOLO26), expected YOLOv8's: use yolov8n")
    if head.reg_max < 2:
        raise StudentError(f"{checkpoint} has reg_max {head.reg_max}, expected YOLOv8's 16 DFL bins: use yolov8n")
    strides = tuple(int(stride) for stride in head.stride)
    if strides != STRIDES:
        raise StudentError(f"{checkpoint} has strides {strides}, expected {STRIDES}: use a YOLOv8 without P2 or P6")


def _outputs(head: Any) -> tuple[OutputSpec, ...]:
    channels = {"box": 4 * int(head.reg_max), "class": int(head.nc)}
    segments = type(head).__name__ == "Segment"
    if segments:
        channels["mask"] = int(head.nm)
    levels = [(stride.bit_length() - 1, stride) for stride in STRIDES]  # level p has stride 2 ** p
    outputs = [
        OutputSpec(f"{meaning}_p{level}", meaning, stride, count, "NCHW")
        for meaning, count in channels.items()
        for level, stride in levels
    ]
    if segments:
        outputs.append(OutputSpec("prototype", "prototype", PROTOTYPE_STRIDE, int(head.nm), "NCHW"))
    return tuple(outputs)
