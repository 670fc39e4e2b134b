"""The engine protocol, and the border between pixels and a compiled model's own tensors."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle, InputSpec, OutputSpec
from deploy.errors import BundleError, EngineError, EngineNotInstalledError

# Adding an engine is one file and one line here.
_MODULES = {
    "onnx": "deploy.runtime.engines.onnx",
    "openvino": "deploy.runtime.engines.openvino",
    "tflite": "deploy.runtime.engines.tflite",
}

MAX_THREADS_PER_PROCESSOR = 4  # more than this is a slip of the keyboard, and starting them may never end


class Engine(Protocol):
    """A compiled model, ready to run. One object serves one thread at a time."""

    def infer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        """Run the network on one letterboxed image.

        Args:
            pixels: (1, height, width, 3) uint8 RGB of the manifest's input size.

        Returns:
            One float32 array (cells, channels) for each of the manifest's outputs, in its order, cells row by
            row. The arrays may be views of memory that the next call overwrites.

        Raises:
            EngineError: `pixels` is of another shape or type.
        """

    def facts(self) -> Mapping[str, Any]:
        """What runs here: library, version, threads, the precision asked for, and more where the engine tells it."""

    def close(self) -> None:
        """Free the model. The engine cannot be used afterwards."""


def load_engine(bundle: Bundle, threads: int) -> Engine:
    """Open a bundle's model with its runtime.

    Args:
        bundle: an opened bundle.
        threads: threads for one inference, from 1 to 4 times the processors of this machine.

    Raises:
        BundleError: the manifest names an engine this version does not know.
        EngineNotInstalledError: the runtime is not importable.
        EngineError: the runtime refuses the model, the model has not the tensors that the manifest names, or
            `threads` is out of range.
    """
    name = bundle.manifest.engine
    if name not in _MODULES:
        raise BundleError(f"{bundle.path} is for engine {name!r}, known are {', '.join(_MODULES)}")
    if threads < 1:
        raise EngineError(f"threads is {threads}, expected at least 1")
    processors = os.cpu_count() or 1
    if threads > MAX_THREADS_PER_PROCESSOR * processors:
        most = MAX_THREADS_PER_PROCESSOR * processors
        raise EngineError(f"threads is {threads}, expected at most {most} on a machine of {processors} processors")
    module = importlib.import_module(_MODULES[name])
    return cast(Engine, module.load(bundle, threads))


def not_installed(bundle: Bundle, package: str, error: ImportError) -> EngineNotInstalledError:
    """What to raise where `package`, the runtime of `bundle`, cannot be imported."""
    return EngineNotInstalledError(
        f"{bundle.path} needs {package}, which cannot be imported ({reason(error)}): pip install {package}"
    )


def reason(error: Exception) -> str:
    """What an exception says in one line; its kind, where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


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
    _check_tensor(bundle, "input", spec.name, _shape(spec.layout, spec.height, spec.width, 3), inputs)
    for output in bundle.manifest.outputs:
        shape = _shape(output.layout, spec.height // output.stride, spec.width // output.stride, output.channels)
        _check_tensor(bundle, "output", output.name, shape, outputs)


def _shape(layout: str, height: int, width: int, channels: int) -> tuple[int, ...]:
    return (1, height, width, channels) if layout == "NHWC" else (1, channels, height, width)


def _check_tensor(
    bundle: Bundle, kind: str, name: str, expected: tuple[int, ...], tensors: Mapping[str, Sequence[object]]
) -> None:
    if name not in tensors:
        raise EngineError(
            f"{bundle.model_path} has the {kind}s {', '.join(tensors)}, its manifest names {name!r}: "
            "make the bundle again"
        )
    met = tensors[name]
    fits = len(met) == 4 and all(one == side for one, side in zip(met, expected, strict=True) if isinstance(one, int))
    if not fits:
        raise EngineError(
            f"{bundle.model_path} has {kind} {name!r} of shape {tuple(met)}, its manifest says {expected}: "
            "make the bundle again"
        )


def check_pixels(pixels: NDArray[np.uint8], spec: InputSpec) -> None:
    """Refuse pixels that are not (1, height, width, 3) uint8.

    Raises:
        EngineError: another shape or type.
    """
    expected = (1, spec.height, spec.width, 3)
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise EngineError(f"input is {pixels.dtype} of shape {pixels.shape}, expected uint8 of shape {expected}")


def to_input(pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[Any]:
    """Letterboxed pixels in the layout and type that the model takes, as `InputSpec` describes."""
    check_pixels(pixels, spec)
    laid_out = pixels if spec.layout == "NHWC" else pixels.transpose(0, 3, 1, 2)
    if spec.dtype == "uint8":
        return np.ascontiguousarray(laid_out)
    if spec.dtype == "int8":
        # pixel - 128 in two's complement is the pixel with its top bit flipped.
        return np.ascontiguousarray(laid_out ^ np.uint8(0x80)).view(np.int8)
    dtype = np.dtype(spec.dtype)
    return np.asarray(np.multiply(laid_out, dtype.type(spec.scale), dtype=dtype, order="C"))


def to_cells(tensor: NDArray[Any], spec: OutputSpec) -> NDArray[np.float32]:
    """A head tensor (1, C, H, W) or (1, H, W, C) as (H * W, C) float32.

    Raises:
        EngineError: the tensor has another number of channels than the manifest says.
    """
    axis = 3 if spec.layout == "NHWC" else 1
    if tensor.ndim != 4 or tensor.shape[0] != 1 or tensor.shape[axis] != spec.channels:
        raise EngineError(
            f"output {spec.name!r} has shape {tensor.shape}, expected {spec.channels} channels in {spec.layout}: "
            "make the bundle again"
        )
    if spec.layout == "NCHW":
        tensor = tensor.transpose(0, 2, 3, 1)
        return np.asarray(tensor.reshape(-1, spec.channels), np.float32)
    return np.asarray(tensor.reshape(-1, spec.channels), np.float32)
