"""The border between pixels and a compiled model's own tensors: what goes in, what comes out, nothing copied twice."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle, InputSpec, OutputSpec
from deploy.errors import EngineError

_FEW = 64  # cells that are looked for one by one


@dataclass(frozen=True, eq=False)
class RawTensor:
    """One output of a model as the engine left it: its own memory, layout and type.

    Attributes:
        values: (1, C, H, W), (1, H, W, C) or (1, C), of any number type. The next run overwrites them.
        layout: "NCHW", "NHWC" or "NC".
        scale: a real value is (value - zero_point) * scale; 0 where the values are real numbers themselves.
        zero_point: the quantized form of 0.
    """

    values: NDArray[Any]
    layout: str
    scale: float = 0.0
    zero_point: int = 0

    @staticmethod
    def of_cells(values: NDArray[np.float32]) -> RawTensor:
        """What `Engine.infer` gives, (cells, channels) float32, in this form."""
        return RawTensor(values[None, :, None, :], "NHWC")

    @functools.cached_property
    def channels_first(self) -> bool:
        """Whether `matrix` is (channels, cells)."""
        return self.layout == "NCHW"

    @property
    def channels(self) -> int:
        """Channels of a cell."""
        return int(self.values.shape[1 if self.channels_first else -1])

    @functools.cached_property
    def matrix(self) -> NDArray[Any]:
        """All cells as (cells, channels), or as (channels, cells) where channels come first: a view."""
        shape = self.values.shape
        return self.values.reshape((shape[1], -1) if self.channels_first else (-1, shape[-1]))

    def at(self, cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """The given cells as (n, channels) float32 real values, in memory of their own."""
        matrix = self.matrix
        taken = matrix.take(cells, axis=1).T if self.channels_first else matrix.take(cells, axis=0)
        if self.scale and matrix.itemsize == 1:
            return self._reals.take(taken.view(np.uint8))
        return self._real(taken)

    def cells(self) -> NDArray[np.float32]:
        """All cells, row by row, as (H * W, C) float32; (1, C) of an "NC" tensor. May be a view."""
        return self._real(self.matrix.T if self.channels_first else self.matrix)

    def above(self, least: float) -> NDArray[np.int64]:
        """Cells with any channel greater than `least`, ascending. A NaN is greater than nothing.

        Quantized values are compared as they are, with the smallest one that stands for more than `least`.
        """
        known = self._bounds.get(least)
        if known is None:
            self._bounds.clear()  # a threshold seldom changes
            known = self._bounds[least] = self._bound(least)
        compare, bound = known
        if bound is None:
            return np.zeros(0, np.int64)
        row_by_row, marks = memory = self._memory_for_marks()
        compare(self.matrix, bound, out=marks)
        cells = self._few(row_by_row)
        found = np.flatnonzero(marks.any(axis=0 if self.channels_first else 1)) if cells is None else cells
        self._spare.append(memory)
        return found

    def _few(self, row_by_row: bytearray) -> NDArray[np.int64] | None:
        """Cells with a mark, found by memchr (`bytearray.find`); None if they are many, for which that is slow.

        Among 128 000 marks few are found in 3 us on one x86 core, by `nonzero` in 16 us.
        """
        columns = self.matrix.shape[1]
        cells: set[int] = set()
        at = row_by_row.find(1)
        while at >= 0:
            if len(cells) == _FEW:
                return None
            cells.add(at % columns if self.channels_first else at // columns)
            at = row_by_row.find(1, at + 1)
        return np.array(sorted(cells), np.int64)

    def _memory_for_marks(self) -> tuple[bytearray, NDArray[np.bool_]]:
        """A byte for each number of `matrix`, and the same memory as an array: that of another call, if it is done."""
        try:
            return self._spare.pop()
        except IndexError:  # the first, or several threads look at once
            row_by_row = bytearray(self.matrix.size)
            return row_by_row, np.frombuffer(row_by_row, np.bool_).reshape(self.matrix.shape)

    def _bound(self, least: float) -> tuple[Any, Any]:
        """How to compare with which value; with None, if no value stands for more than `least`."""
        if self.scale:
            return np.greater_equal, _first_above(self.matrix.dtype, self.scale, self.zero_point, least)
        return np.greater, _rounded_down(self.matrix.dtype, least)

    @functools.cached_property
    def _bounds(self) -> dict[float, tuple[Any, Any]]:
        return {}

    @functools.cached_property
    def _spare(self) -> list[tuple[bytearray, NDArray[np.bool_]]]:
        return []

    @functools.cached_property
    def _reals(self) -> NDArray[np.float32]:
        """(256,): the real value of each byte that a quantized value of 8 bits may be."""
        return _dequantized(np.arange(256, dtype=np.uint8).view(self.matrix.dtype), self.scale, self.zero_point)

    def _real(self, values: NDArray[Any]) -> NDArray[np.float32]:
        if not self.scale:
            return np.asarray(values, np.float32)
        return _dequantized(values, self.scale, self.zero_point)


Outputs = Sequence[RawTensor] | Sequence[NDArray[np.float32]]  # of `RawEngine.run`, or of `Engine.infer`


def _dequantized(values: NDArray[Any], scale: float, zero_point: int) -> NDArray[np.float32]:
    real = values.astype(np.float32)
    real -= np.float32(zero_point)
    real *= np.float32(scale)
    return real


def _rounded_down(dtype: np.dtype[Any], least: float) -> Any:
    """The largest number of a float type that is not above `least`: what exceeds the one exceeds the other."""
    nearest = dtype.type(least)
    return nearest if float(nearest) <= least else np.nextafter(nearest, dtype.type(-np.inf))


def _first_above(dtype: np.dtype[Any], scale: float, zero_point: int, least: float) -> Any:
    """The smallest quantized value whose real value exceeds `least`, or None; 8 or 16 bits are few enough to look."""
    info = np.iinfo(dtype)
    known = np.arange(info.min, info.max + 1)
    greater = np.flatnonzero(_dequantized(known, scale, zero_point) > least)
    return dtype.type(known[greater[0]]) if len(greater) else None


def fill_input(pixels: NDArray[np.uint8], spec: InputSpec, out: NDArray[Any]) -> None:
    """Write letterboxed pixels into a model's input.

    Args:
        pixels: (1, height, width, 3) uint8 RGB.
        spec: the layout and type of the input.
        out: the input's memory, of that layout and type.
    """
    laid_out = pixels if spec.layout == "NHWC" else pixels.transpose(0, 3, 1, 2)
    if spec.dtype == "uint8":
        np.copyto(out, laid_out)
    elif spec.dtype == "int8":
        # pixel - 128 in two's complement is the pixel with its top bit flipped.
        np.bitwise_xor(laid_out, np.uint8(0x80), out=out.view(np.uint8))
    else:
        np.copyto(out, laid_out)  # two passes, each by a fast loop: quicker than one that converts as it multiplies
        out *= out.dtype.type(spec.scale)


def takes_pixels(spec: InputSpec) -> bool:
    """Whether letterboxed pixels are the model's input as they are."""
    return spec.layout == "NHWC" and spec.dtype == "uint8"


def check_pixels(pixels: NDArray[np.uint8], spec: InputSpec) -> None:
    """Refuse pixels that are not (1, height, width, 3) uint8.

    Raises:
        EngineError: another shape or type.
    """
    expected = (1, spec.height, spec.width, 3)
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise EngineError(f"input is {pixels.dtype} of shape {pixels.shape}, expected uint8 of shape {expected}")


def input_shape(spec: InputSpec) -> tuple[int, ...]:
    """Shape of the model's own input tensor."""
    return (1, spec.height, spec.width, 3) if spec.layout == "NHWC" else (1, 3, spec.height, spec.width)


def output_shape(spec: OutputSpec, image: InputSpec) -> tuple[int, ...]:
    """Shape of one of the model's own output tensors."""
    if spec.layout == "NC":
        return (1, spec.channels)
    height, width = image.height // spec.stride, image.width // spec.stride
    return (1, height, width, spec.channels) if spec.layout == "NHWC" else (1, spec.channels, height, width)


def check_tensors(
    bundle: Bundle, inputs: Mapping[str, Sequence[object]], outputs: Mapping[str, Sequence[object]]
) -> None:
    """Refuse a model whose tensors are not those of its manifest.

    Args:
        bundle: the bundle.
        inputs: name to shape of the model's inputs; a side that is no whole number is free.
        outputs: the same of its outputs.

    Raises:
        EngineError: a name that the model lacks, or another shape.
    """
    spec = bundle.manifest.input
    _check_tensor(bundle, "input", spec.name, input_shape(spec), inputs)
    for output in bundle.manifest.outputs:
        _check_tensor(bundle, "output", output.name, output_shape(output, spec), outputs)


def _check_tensor(
    bundle: Bundle, kind: str, name: str, expected: tuple[int, ...], tensors: Mapping[str, Sequence[object]]
) -> None:
    if name not in tensors:
        raise EngineError(
            f"{bundle.model_path} has the {kind}s {', '.join(tensors)}, its manifest names {name!r}: "
            "make the bundle again"
        )
    met = tensors[name]
    fits = len(met) == len(expected) and all(
        one == side for one, side in zip(met, expected, strict=True) if isinstance(one, int)
    )
    if not fits:
        raise EngineError(
            f"{bundle.model_path} has {kind} {name!r} of shape {tuple(met)}, its manifest says {expected}: "
            "make the bundle again"
        )
