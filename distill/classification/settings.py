"""What a classification training can be told beyond its flags: schedule, augmentation and the methods' own choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Final

from distill.classification.augment import AUGMENTATIONS
from distill.errors import DistillError

__all__ = ["Settings", "parse_settings"]


def _choice(default: str, *others: str) -> Any:
    return field(default=default, metadata={"choices": (default, *others)})


def _number(default: float, lowest: float, highest: float = float("inf")) -> Any:
    return field(default=default, metadata={"range": (lowest, highest)})


@dataclass(frozen=True)
class Settings:
    """``--set name=value``.

    Attributes:
        optimizer: ``adamw``, or ``sgd`` with Nesterov momentum.
        lr: highest learning rate; 0 takes 0.001 for adamw and 0.05 for sgd.
        momentum: of sgd.
        weight_decay: of weights of two and more dimensions; biases and norms are not decayed.
        warmup: epochs in which the rate rises from 0; it then falls to 0 along a cosine.
        label_smoothing: of the labels' cross entropy.
        clip: longest gradient, as a norm; 0 does not clip.
        amp: mixed precision: ``off``, ``bf16``, ``fp16`` (CUDA only), or ``auto``: fp16 on CUDA, off on the CPU.
        ema: decay of the average of the student's weights, which is then what is scored and kept; 0 keeps none.
        augment: see ``Augmentation``.
        views: distinct augmented views of each image, used in turn, so that the teacher need answer each once only;
            0 draws a fresh one every epoch.
        holdout: share of the training set that is kept from learning, to choose by; 0 chooses nothing and takes the
            last epoch.
        patience: epochs without a better held-out accuracy after which to stop; 0 never stops.
        fit: ``stretch`` images to the input, or ``crop`` their centre.
        resize: short side before the crop; 0 takes 8/7 of the input, as ImageNet's 256 for 224.
        pretrained: start the student from published weights.
        teacher_pretrained: start teachers and assistants from published weights.
        freeze_epochs: epochs in which all but the last layer of a network is frozen (feature extraction).
        finetune_lr: factor on the learning rate after that (fine-tuning).
        teacher_epochs: epochs of each teacher that has to be trained; 0 takes those of the student.
        hint_epochs: epochs of FitNets' first stage, taken off the student's; 0 takes a quarter of them.
        subclasses: subclasses per class of subclass distillation.
        spread: weight of the loss that keeps subclasses apart.
        branch_kl: weight of the KL of SFTN's branches.
        branch_ce: weight of their cross entropy.
        assistants: networks between teacher and student, largest first, joined by ``+``; empty halves the
            logarithm of the widths of a ``cnn-A-B`` pair.
        teach_epochs: epochs of the teacher that may teach, joined by ``+``; empty takes a quarter, a half and all.
        probe_epochs: epochs of the students that choose among them; 0 takes a third.
        parts: parts of the data, one per teacher, in ``unified``.
        sub_teachers: random sub-networks per batch in ``sub-teachers``.
        dropout: of the embedding there, when the teacher has no dropout of its own.
        peers: networks that learn together in ``mutual``.
        hint_weight: weight of ensemble features against labels.
    """

    optimizer: str = _choice("adamw", "sgd")
    lr: float = _number(0.0, 0.0)
    momentum: float = _number(0.9, 0.0, 1.0)
    weight_decay: float = _number(5e-4, 0.0)
    warmup: float = _number(1.0, 0.0)
    label_smoothing: float = _number(0.0, 0.0, 1.0)
    clip: float = _number(0.0, 0.0)
    amp: str = _choice("auto", "off", "bf16", "fp16")
    ema: float = _number(0.0, 0.0, 1.0)
    augment: str = _choice(*AUGMENTATIONS)
    views: int = _number(0, 0)
    holdout: float = _number(0.0, 0.0, 0.5)
    patience: int = _number(0, 0)
    fit: str = _choice("stretch", "crop")
    resize: int = _number(0, 0)
    pretrained: bool = False
    teacher_pretrained: bool = False
    freeze_epochs: int = _number(0, 0)
    finetune_lr: float = _number(0.1, 0.0)
    teacher_epochs: int = _number(0, 0)
    hint_epochs: int = _number(0, 0)
    subclasses: int = _number(2, 2)
    spread: float = _number(0.1, 0.0)
    branch_kl: float = _number(3.0, 0.0)
    branch_ce: float = _number(1.0, 0.0)
    assistants: str = ""
    teach_epochs: str = ""
    probe_epochs: int = _number(0, 0)
    parts: int = _number(2, 2)
    sub_teachers: int = _number(4, 1)
    dropout: float = _number(0.3, 0.0, 1.0)
    peers: int = _number(2, 2)
    hint_weight: float = _number(1.0, 0.0)

    def changed(self) -> dict[str, Any]:
        """What differs from the defaults, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


_FIELDS: Final = {f.name: f for f in fields(Settings)}


def parse_settings(pairs: Sequence[str]) -> Settings:
    """Read ``--set``.

    Args:
        pairs: for example ``["lr=0.002", "pretrained=true"]``.

    Raises:
        DistillError: for an unknown or repeated name, or a value of the wrong type or range.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in _FIELDS:
            raise DistillError(f"--set {pair!r}: expected name=value with one of {', '.join(_FIELDS)}")
        if name in values:
            raise DistillError(f"--set gives {name} twice: give it once")
        values[name] = _value(name, value)
    if values.get("patience") and not values.get("holdout"):
        raise DistillError("--set patience needs images to judge by that are not the test's: add holdout=0.1")
    return Settings(**values)


def _value(name: str, text: str) -> Any:
    """One value, of the type of its default."""
    default, metadata = _FIELDS[name].default, _FIELDS[name].metadata
    assert default is not MISSING  # every setting has one
    if isinstance(default, bool):
        if text.lower() not in {"true", "false"}:
            raise DistillError(f"--set {name}={text}: expected true or false")
        return text.lower() == "true"
    if isinstance(default, str):
        choices = metadata.get("choices")
        if choices and text not in choices:
            raise DistillError(f"--set {name}={text}: expected one of {', '.join(choices)}")
        return text
    lowest, highest = metadata["range"]
    kind = type(default)
    try:
        number = kind(text)
    except ValueError:
        number = float("nan")
    if not (lowest <= number <= highest and math.isfinite(number)):
        what = "whole number" if kind is int else "number"
        bound = f"from {lowest:g} to {highest:g}" if highest < float("inf") else f"of at least {lowest:g}"
        raise DistillError(f"--set {name}={text}: expected a {what} {bound}")
    return number
