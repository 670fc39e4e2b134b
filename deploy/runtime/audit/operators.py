"""What one operator of a compiled model was executed as."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

# In the order of the table's columns. "INT8 dynamic": 8-bit weights, activations quantized anew at every run.
# "INT16": 16-bit activations with 8-bit weights.
EXECUTED_AS = ("INT8", "INT8 dynamic", "INT16", "FP16", "BF16", "FP32", "other")

CONVOLUTION, PRODUCT, CONVERSION, LAYOUT, OTHER = "convolution", "product", "conversion", "layout", "other"

_BY_TYPE = {
    "int8": "INT8",
    "uint8": "INT8",
    "i8": "INT8",
    "u8": "INT8",
    "int16": "INT16",
    "float16": "FP16",
    "f16": "FP16",
    "fp16": "FP16",
    "bfloat16": "BF16",
    "bf16": "BF16",
    "float": "FP32",
    "float32": "FP32",
    "f32": "FP32",
}


@dataclass(frozen=True)
class Operator:
    """One operator as the engine executed it.

    Attributes:
        name: the engine's.
        kind: the engine's word for what it computes: "Convolution", "QLinearConv", "CONV_2D".
        role: "convolution", "product" (of matrices), "conversion" (between precisions), "layout" (moves values about in
            memory for the engine's own ends) or "other".
        precision: one of `EXECUTED_AS`.
        kernel: the engine's word for the code that ran: "brgconv_avx512_amx_I8", "XNNPACK".
        macs: multiplications of one inference; 0 of other roles than the first two.
        seconds: mean time of one inference; None where the engine does not tell.
        accelerated: False where the engine has a faster kernel for this that it did not take.
    """

    name: str
    kind: str
    role: str
    precision: str
    kernel: str
    macs: int = 0
    seconds: float | None = None
    accelerated: bool = True

    @property
    def counts(self) -> bool:
        """Whether it is one of those that an audit judges: convolutions and products are nearly all of the work."""
        return self.role in (CONVOLUTION, PRODUCT)


@dataclass(frozen=True)
class Executed:
    """What an engine says that it executed.

    Attributes:
        library: name of the runtime.
        version: of the runtime.
        operators: in the order of execution.
        notes: what else bears on speed or precision, a sentence each.
    """

    library: str
    version: str
    operators: tuple[Operator, ...]
    notes: tuple[str, ...] = field(default=())


def precision_of(type_name: str) -> str:
    """One of `EXECUTED_AS` for an element type in any engine's words."""
    return _BY_TYPE.get(type_name.lower(), "other")


def multiplications(shape: Sequence[int], weights: Sequence[int], channels: int) -> int:
    """Multiplications of a convolution or a product.

    Args:
        shape: of the output; of a transposed convolution that of the input.
        weights: their shape, its sides in any order; of a grouped convolution with the inputs of one group.
        channels: of `shape`: the values of the weights are divided among so many.
    """
    return math.prod(shape) * (math.prod(weights) // channels) if channels else 0
