"""Ultralytics training settings that a user may change: schedule, optimizer and augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ultralytics.cfg import check_cfg, smart_value

from distill.errors import DistillError

__all__ = ["SETTABLE", "parse_settings"]

#: What a plain training and a distillation share. Flags of the command, paths and what exact resuming relies on
#: are not among them.
SETTABLE: Final = (
    *("optimizer", "lr0", "lrf", "cos_lr", "momentum", "weight_decay", "nbs", "patience", "freeze", "dropout", "amp"),
    *("val", "cache", "save_period"),  # validating each epoch or the last alone; images in memory; epochs to keep
    *("warmup_epochs", "warmup_momentum", "warmup_bias_lr", "box", "cls", "dfl"),
    *("mosaic", "close_mosaic", "mixup", "cutmix", "copy_paste", "auto_augment", "erasing", "hsv_h", "hsv_s", "hsv_v"),
    *("degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "bgr"),
)


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``--set``: ``name=value`` pairs as ultralytics understands them.

    Args:
        pairs: for example ``["lr0=0.002", "nbs=16"]``.

    Returns:
        Values by name, of the types ultralytics wants.

    Raises:
        DistillError: for a name that cannot be set here, a repeated one, or a value of the wrong type or range.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in SETTABLE:
            raise DistillError(f"--set {pair!r}: expected name=value with one of {', '.join(SETTABLE)}")
        if name in settings:
            raise DistillError(f"--set gives {name} twice: give it once")
        settings[name] = smart_value(value)
    try:
        check_cfg(settings)
    except (TypeError, ValueError) as error:
        raise DistillError(f"--set: {' '.join(str(error).split())}") from error
    return settings
