"""TensorFlow Lite models, by ai-edge-litert or, where a device has only that, tflite-runtime."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.errors import EngineError, EngineNotInstalledError
from deploy.runtime.engine import reason
from deploy.runtime.letterbox import InputBuffer
from deploy.runtime.options import Options
from deploy.runtime.tensors import RawTensor, check_pixels, check_tensors, fill_input

# In order of preference: the successor is many times faster on int8 (its XNNPACK delegates all of it).
_LIBRARIES = (("ai-edge-litert", "ai_edge_litert.interpreter"), ("tflite-runtime", "tflite_runtime.interpreter"))
_MASKS = {"uint8": 0, "int8": 0x80}  # pixel - 128 in two's complement is the pixel with its top bit flipped
DELEGATED = "DELEGATE"  # the kind of operator that stands for a part of the graph that a delegate runs


def load(bundle: Bundle, threads: int, options: Options) -> TfliteEngine:
    """Open a TFLite bundle; see `deploy.runtime.load_engine`."""
    return TfliteEngine(bundle, threads, options)


class TfliteEngine:
    """One interpreter, whose own memory is written and read in place."""

    def __init__(self, bundle: Bundle, threads: int, options: Options) -> None:
        library, self._interpreter = open_interpreter(bundle, threads, options)
        given = self._interpreter.get_input_details()[0]
        details = {detail["name"]: detail for detail in self._interpreter.get_output_details()}
        check_tensors(
            bundle,
            {given["name"]: given["shape"].tolist()},
            {name: detail["shape"].tolist() for name, detail in details.items()},
        )
        self._input_spec = bundle.manifest.input
        self._input = self._memory(given["index"])
        self._own = self._own_buffer()
        self._outputs = tuple(self._output(details[output.name], output.layout) for output in bundle.manifest.outputs)
        delegated = partitions(self._interpreter)
        self._facts = {
            "library": library,
            "version": version(library),
            "threads": threads,
            "precision_asked": bundle.manifest.precision,
            "delegate": "XNNPACK" if delegated else "none",
            "partitions": delegated,
            "options": dict(options),
        }

    def infer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        """Run one image; see `deploy.runtime.Engine.infer`. The arrays are the caller's."""
        return tuple(np.array(tensor.cells()) for tensor in self.run(pixels))

    def run(self, pixels: NDArray[np.uint8]) -> tuple[RawTensor, ...]:
        """Run one image; see `deploy.runtime.RawEngine.run`."""
        if self._own is None or pixels is not self._own.pixels:
            check_pixels(pixels, self._input_spec)
            fill_input(pixels, self._input_spec, self._input)
            if self._own is not None:
                self._own.forget()
        self._interpreter.invoke()
        return self._outputs

    def own_buffer(self) -> InputBuffer | None:
        """See `deploy.runtime.RawEngine.own_buffer`: the input of an int8 or uint8 model, which no run overwrites."""
        return self._own

    def facts(self) -> Mapping[str, Any]:
        """Library, version, threads, precision asked, delegate and how many parts of the graph it took, options."""
        return self._facts

    def close(self) -> None:
        """Free the interpreter, once the last tensor that it gave is gone."""
        del self._input, self._own, self._outputs, self._interpreter

    def _memory(self, index: int) -> NDArray[Any]:
        """The interpreter's own memory of a tensor, which stays where it is: no shape ever changes."""
        view = self._interpreter.tensor(index)()
        return np.asarray(_Memory(self._interpreter, view.__array_interface__))

    def _own_buffer(self) -> InputBuffer | None:
        spec = self._input_spec
        if spec.layout != "NHWC" or spec.dtype not in _MASKS:
            return None
        memory = self._input.view(np.uint8)
        return InputBuffer(spec.height, spec.width, spec.pad_value, memory=memory, mask=_MASKS[spec.dtype])

    def _output(self, detail: Mapping[str, Any], layout: str) -> RawTensor:
        memory = self._memory(detail["index"])
        scale, zero_point = detail["quantization"]
        quantized = memory.dtype.kind in "iu"
        return RawTensor(memory, layout, float(scale) if quantized else 0.0, int(zero_point))


class _Memory:
    """A tensor's memory for numpy.

    The arrays of `Interpreter.tensor` keep its inner object alive, and the interpreter refuses to run while one of
    them exists. This one keeps the interpreter itself alive: just as safe, and it can stay for all runs.
    """

    def __init__(self, interpreter: Any, array_interface: Mapping[str, Any]) -> None:
        self.interpreter = interpreter
        self.__array_interface__ = dict(array_interface)


def open_interpreter(bundle: Bundle, threads: int, options: Options) -> tuple[str, Any]:
    """The library's name, and its interpreter of the model with its memory allocated.

    Raises:
        EngineNotInstalledError: neither library can be imported.
        EngineError: it refuses the model.
    """
    library, module = _import_interpreter(bundle)
    try:
        interpreter = module.Interpreter(
            model_path=str(bundle.model_path), num_threads=threads, **_resolver(module, options)
        )
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"{library} {version(library)} refuses {bundle.model_path}: {reason(error)}") from error
    return library, interpreter


def partitions(interpreter: Any) -> int:
    """How many parts of the graph a delegate took; each begins and ends with a copy of its tensors."""
    wrapped = interpreter._interpreter  # the public methods that tell it build a description of every tensor first
    return [wrapped.NodeName(index) for index in range(wrapped.NumNodes())].count(DELEGATED)


def _resolver(module: Any, options: Options) -> dict[str, Any]:
    """What turns XNNPACK off; it is on by itself."""
    if options["xnnpack"]:
        return {}
    return {"experimental_op_resolver_type": module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}


def _import_interpreter(bundle: Bundle) -> tuple[str, Any]:
    reasons = []
    for library, name in _LIBRARIES:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            reasons.append(f"{library}: {reason(error)}")
            continue
        # Built for numpy 1, it imports under numpy 2 and fails with a SystemError once a model is opened.
        if library == "tflite-runtime" and int(np.__version__.split(".")[0]) >= 2:
            raise EngineNotInstalledError(
                f"tflite-runtime needs numpy < 2, this Python has numpy {np.__version__}: pip install 'numpy<2'"
            )
        return library, module
    raise EngineNotInstalledError(
        f"{bundle.path} needs ai-edge-litert, which cannot be imported ({'; '.join(reasons)}): "
        "pip install ai-edge-litert"
    )
