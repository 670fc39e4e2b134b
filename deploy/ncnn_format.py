"""ncnn's two files, read and written: a `.param` of text, a layer a line, and a `.bin` of its layers' weights in order.

The formats are ncnn's own (its wiki, "param and model file structure"). What pnnx writes is read into memory here: then
tensors can be named, the input's size stated and convolutions quantized, and the same network gives the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ExportError

MAGIC = 7767517

# What stands before weights that may be stored in several ways.
_FLOAT32, _FLOAT16, _INT8 = 0, 0x01306B47, 0x000D4B38
_BYTES = {_FLOAT32: 4, _FLOAT16: 2, _INT8: 1}
_DTYPES = {_FLOAT32: "<f4", _FLOAT16: "<f2", _INT8: "<i1"}
_TAGS = {"f4": _FLOAT32, "f2": _FLOAT16, "i1": _INT8}

SCALE_TERM = 8  # the parameter that says whether and how an int8 layer has scales
CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")


@dataclass
class Blob:
    """One run of weights.

    Attributes:
        values: (n,) float32, float16 or int8.
        tagged: whether its type stands before it; else it is float32.
    """

    values: NDArray[np.generic]
    tagged: bool = False


@dataclass
class Layer:
    """One line of a `.param` with its weights.

    Attributes:
        kind: such as "Convolution".
        name: unique among the layers.
        inputs: names of the tensors that it reads.
        outputs: names of the tensors that it makes.
        params: number of a parameter to its value as text, in order.
        weights: what it has in the `.bin`.
    """

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    params: dict[int, str]
    weights: list[Blob] = field(default_factory=list)

    def whole(self, number: int, default: int = 0) -> int:
        """A parameter that is a whole number."""
        return int(self.params.get(number, default))


def read_network(param: str, weights: bytes) -> list[Layer]:
    """A network from the content of its two files.

    Raises:
        ExportError: a layer whose weights are not known here, so that those after it cannot be found.
    """
    lines = [line.split() for line in param.splitlines() if line.strip()]
    if lines[0] != [str(MAGIC)]:
        raise ExportError(f"pnnx wrote a .param that begins with {lines[0]}, expected {MAGIC}: check pnnx's version")
    layers = [_parsed(words) for words in lines[2:]]
    reader = _Reader(weights)
    for layer in layers:
        layer.weights = [reader.take(count, tagged) for count, tagged in _expected(layer)]
    if reader.left:
        kinds = ", ".join(sorted({layer.kind for layer in layers}))
        raise ExportError(f"{reader.left} bytes of weights belong to none of the layers known here ({kinds})")
    return layers


def write_network(layers: Sequence[Layer]) -> tuple[str, bytes]:
    """The content of the two files."""
    tensors = {name for layer in layers for name in layer.outputs}
    lines = [str(MAGIC), f"{len(layers)} {len(tensors)}"]
    for layer in layers:
        words = [layer.kind, layer.name, str(len(layer.inputs)), str(len(layer.outputs))]
        words += [*layer.inputs, *layer.outputs, *(f"{number}={value}" for number, value in layer.params.items())]
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n", b"".join(_stored(blob) for layer in layers for blob in layer.weights)


def rename(layers: Sequence[Layer], tensors: dict[str, str]) -> None:
    """Name tensors as `tensors` says and by number otherwise, and layers by kind and number, in place.

    pnnx counts on from what else the process has traced.
    """
    names = dict(tensors)
    for layer in layers:
        for name in layer.outputs:
            names.setdefault(name, str(len(names)))
    for index, layer in enumerate(layers):
        layer.name = f"{layer.kind.lower()}_{index}"
        layer.inputs = [names[name] for name in layer.inputs]
        layer.outputs = [names[name] for name in layer.outputs]


def _parsed(words: list[str]) -> Layer:
    kind, name, reads, makes = words[0], words[1], int(words[2]), int(words[3])
    tensors, rest = words[4 : 4 + reads + makes], words[4 + reads + makes :]
    params = dict(word.split("=", 1) for word in rest)
    return Layer(kind, name, tensors[:reads], tensors[reads:], {int(number): value for number, value in params.items()})


def _expected(layer: Layer) -> list[tuple[int, bool]]:
    """How many values each of a layer's runs of weights has, and whether its type stands before it."""
    whole = layer.whole
    if layer.kind in CONVOLUTIONS:
        return [(whole(6), True)] + [(whole(0), False)] * whole(5) + _scales(layer)
    if layer.kind == "InnerProduct":
        return [(whole(2), True)] + [(whole(0), False)] * whole(1) + _scales(layer)
    if layer.kind == "MemoryData":
        sides = [whole(number) or 1 for number in (0, 1, 11, 2)]
        return [(int(np.prod(sides)), whole(21, 1) == 0)]
    if layer.kind == "BatchNorm":
        return [(whole(0), False)] * 4
    if layer.kind == "PReLU":
        return [(whole(0), False)]
    if layer.kind == "Scale" and whole(0) > 0:
        return [(whole(0), False)] * (1 + whole(1))
    return []


def _scales(layer: Layer) -> list[tuple[int, bool]]:
    """Of an int8 layer: of the weights, for each output or group, and of what it reads."""
    if not layer.whole(SCALE_TERM):
        return []
    count = layer.whole(7, 1) if layer.kind == "ConvolutionDepthWise" else layer.whole(0)
    return [(count, False), (1, False)]


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not taken yet."""
        return len(self._content) - self._at

    def take(self, count: int, tagged: bool) -> Blob:
        """The next `count` values."""
        kind = _FLOAT32
        if tagged:
            (kind,) = struct.unpack("<I", self._bytes(4))
        if kind not in _DTYPES:
            raise ExportError(f"weights of unknown type 0x{kind:08X}: check pnnx's version")
        size = count * _BYTES[kind]
        values = np.frombuffer(self._bytes(_aligned(size))[:size], _DTYPES[kind])
        return Blob(values, tagged)

    def _bytes(self, count: int) -> bytes:
        taken = self._content[self._at : self._at + count]
        if len(taken) < count:
            raise ExportError("the weights end before the last layer has its own: check pnnx's version")
        self._at += count
        return taken


def _stored(blob: Blob) -> bytes:
    content = np.ascontiguousarray(blob.values).tobytes()
    tag = struct.pack("<I", _TAGS[blob.values.dtype.str[1:]]) if blob.tagged else b""
    return tag + content + b"\0" * (_aligned(len(content)) - len(content))


def _aligned(size: int) -> int:
    return -(-size // 4) * 4
