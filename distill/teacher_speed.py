"""How a frozen teacher runs fastest here: measured on the first batch, recorded, and kept when a run is resumed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from distill.whole import write_whole

__all__ = ["PRECISIONS", "Layout", "SpeedRecord", "candidates", "fastest", "multiplies_bfloat16"]

log = logging.getLogger(__name__)

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: ``--teacher-precision``: by measurement, the precision fixed, or the memory format too.
PRECISIONS: Final = (
    "auto",
    *DTYPES,
    *(f"{name}-{order}" for name in DTYPES for order in ("contiguous", "channels-last")),
)

_IMAGES: Final = 4  # of the first batch; the ranking is that of the whole batch, at a fraction of its time
_ROUNDS: Final = 3
#: A layout must be this much faster than the plain one to be taken: below it the difference is noise, and a choice
#: by noise would make two runs of one recipe differ in their last bits.
_MARGIN: Final = 0.9
#: A layout whose first run takes so many times the best one's is not run again.
_HOPELESS: Final = 3.0


@dataclass(frozen=True)
class Layout:
    """A precision and a memory format.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        channels_last: whether activations and weights are NHWC in memory.
        seconds: what the candidates took for ``images`` images, by name, when this one was measured to be the best.
        images: shape of the images that were measured with.
    """

    precision: str = "fp32"
    channels_last: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    images: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Such as ``bf16 channels-last``."""
        return self.precision + (" channels-last" if self.channels_last else "")

    @property
    def option(self) -> str:
        """What ``--teacher-precision`` takes to have this one without a measurement."""
        return f"{self.precision}-{'channels-last' if self.channels_last else 'contiguous'}"

    @property
    def dtype(self) -> torch.dtype:
        """The precision as torch knows it."""
        return DTYPES[self.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format as torch knows it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware: AMX or AVX512-BF16; elsewhere it is emulated, and slow."""
    asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in asked)


def candidates(device: torch.device, student: str, asked: str) -> list[Layout]:
    """The layouts worth trying, the plain one first.

    Args:
        device: where the teacher runs.
        student: precision of the student's forward pass.
        asked: ``--teacher-precision``. ``auto`` is the student's precision, for a teacher that is more exact than what
            it teaches costs time for nothing, and on a CPU that multiplies bfloat16 also that. A name with a memory
            format, such as ``bf16-channels-last``, leaves nothing to measure.
    """
    precision, _, order = asked.partition("-")
    precisions = [student if asked == "auto" else precision]
    if asked == "auto" and device.type == "cpu" and student == "fp32" and multiplies_bfloat16():
        precisions.append("bf16")
    orders = (order == "channels-last",) if order else (False, True)
    return [Layout(name, channels_last) for name in precisions for channels_last in orders]


@torch.no_grad()
def fastest(model: nn.Module, images: Tensor, tried: Sequence[Layout]) -> Layout:
    """Run some images through the model in each layout, in turns, and return the one with the shortest time.

    Args:
        model: in float32; it is left as it is.
        images: (batch, channels, height, width), 0 to 1.
        tried: the first is kept unless another is clearly faster.
    """
    some = images[:_IMAGES].float()
    models = [deepcopy(model).to(dtype=one.dtype).to(memory_format=one.memory_format) for one in tried]
    seconds = [_seconds(m, some, one) for m, one in zip(models, tried, strict=True)]  # warm-up
    hopeful = [s < _HOPELESS * min(seconds) for s in seconds]
    for turn in range(_ROUNDS):
        for index, (m, one) in enumerate(zip(models, tried, strict=True)):
            if hopeful[index]:
                took = _seconds(m, some, one)
                seconds[index] = took if turn == 0 else min(seconds[index], took)
    quickest = min(range(len(tried)), key=seconds.__getitem__)
    chosen = tried[quickest if seconds[quickest] < _MARGIN * seconds[0] else 0]
    measured = {one.name: round(took, 6) for one, took in zip(tried, seconds, strict=True)}
    log.info("teacher runs in %s: %s", chosen.name, ", ".join(f"{k} {v * 1e3:.0f} ms" for k, v in measured.items()))
    return Layout(chosen.precision, chosen.channels_last, measured, tuple(some.shape))


class SpeedRecord:
    """The layouts of a run's teachers, in a file of the run folder: a resumed run must not choose anew."""

    def __init__(self, path: Path) -> None:
        """Keep them at ``path``, which need not exist."""
        self.path = path

    def read(self, teacher: int, device: str) -> Layout | None:
        """The layout of a teacher, counted from 0, on a kind of device; None before it was chosen there."""
        return self._layouts().get(f"{teacher} {device}")

    def layouts(self) -> list[Layout]:
        """All that it holds."""
        return list(self._layouts().values())

    def write(self, teacher: int, device: str, layout: Layout) -> None:
        """Add a teacher's layout; the file is replaced, never half-written."""
        entries = {**self._entries(), f"{teacher} {device}": asdict(layout)}
        write_whole(self.path, json.dumps(entries, indent=2) + "\n")

    def _layouts(self) -> dict[str, Layout]:
        return {key: Layout(**{**entry, "images": tuple(entry["images"])}) for key, entry in self._entries().items()}

    def _entries(self) -> dict[str, Any]:
        try:
            entries: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return entries


def _seconds(model: nn.Module, images: Tensor, layout: Layout) -> float:
    given = images.to(dtype=layout.dtype).contiguous(memory_format=layout.memory_format)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    start = time.perf_counter()
    model(given)
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start
