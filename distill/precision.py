"""bfloat16 training on the CPU, which ultralytics 8.4.190 refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from ultralytics.engine import trainer as engine

__all__ = ["Float32Criterion", "cpu_bfloat16", "float32_outputs", "trains_in_cpu_bfloat16"]


def trains_in_cpu_bfloat16(trainer: Any) -> bool:
    """Whether the trainer was asked for bfloat16 (``amp=bf16``) and runs on the CPU."""
    return bool(trainer.args.amp == "bf16" and trainer.device.type == "cpu")


@contextmanager
def cpu_bfloat16() -> Iterator[None]:
    """Let ultralytics' training loop autocast to bfloat16 on the CPU, within this context only.

    ``ultralytics.utils.torch_utils.autocast`` knows bfloat16 on CUDA alone and raises elsewhere, although
    ``torch.autocast`` supports it on every CPU (fast where the CPU multiplies bfloat16: AMX or AVX512-BF16).
    """
    theirs = engine.autocast

    def autocast(enabled: bool | torch.dtype, device: str = "cuda") -> Any:
        if device == "cpu" and enabled is torch.bfloat16:
            return torch.autocast("cpu", torch.bfloat16)
        return theirs(enabled, device)

    engine.autocast = autocast
    try:
        yield
    finally:
        engine.autocast = theirs


def float32_outputs(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """A head's raw outputs ``boxes``, ``scores`` and ``feats`` as float32, inside the graph; the rest as it is."""
    return {name: _float32(value) for name, value in outputs.items()}


class Float32Criterion:
    """A criterion, distilling or plain, given float32.

    CUDA's autocast runs softmax and the like in float32 by itself; the CPU's keeps them in the precision that they
    meet, and box edges of 0 to 15 strides with 8 bits of mantissa would be off by up to 1/32 of a stride.

    A copy of it is a copy of the wrapped one: ultralytics copies the model for its average, and no checkpoint may
    hold a class of this project.
    """

    def __init__(self, criterion: Any) -> None:
        """Wrap ``criterion``."""
        self.criterion = criterion

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what it returns of the float32 outputs, computed outside autocast."""
        with torch.autocast("cpu", enabled=False):
            raw = outputs if isinstance(outputs, tuple) else float32_outputs(outputs)
            result: tuple[Tensor, dict[str, Tensor]] = self.criterion(raw, batch)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return a copy of the wrapped criterion."""
        return deepcopy(self.criterion, memo)


def _float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(_float32(item) for item in value)
    return value
