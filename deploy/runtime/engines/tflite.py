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
from deploy.runtime.engine import check_pixels, check_tensors, reason, to_cells, to_input

# In order of preference: the successor is many times faster on int8 (its XNNPACK delegates all of it).
_LIBRARIES = (("ai-edge-litert", "ai_edge_litert.interpreter"), ("tflite-runtime", "tflite_runtime.interpreter"))


def load(bundle: Bundle, threads: int) -> TfliteEngine:
    """Open a TFLite bundle; see `deploy.runtime.load_engine`."""
    return TfliteEngine(bundle, threads)


class TfliteEngine:
    """One interpreter with the XNNPACK delegate that the library applies by itself."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        library, module = _import_interpreter(bundle)
        try:
            self._interpreter = module.Interpreter(model_path=str(bundle.model_path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{library} {version(library)} refuses {bundle.model_path}: {error}") from error
        self._manifest = bundle.manifest
        self._input = self._interpreter.get_input_details()[0]
        details = {detail["name"]: detail for detail in self._interpreter.get_output_details()}
        check_tensors(
            bundle,
            {self._input["name"]: self._input["shape"].tolist()},
            {name: detail["shape"].tolist() for name, detail in details.items()},
        )
        self._outputs = [details[output.name] for output in bundle.manifest.outputs]
        self._facts = {
            "library": library,
            "version": version(library),
            "threads": threads,
            "precision_asked": bundle.manifest.precision,
        }

    def infer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        """Run one image; see `deploy.runtime.Engine.infer`."""
        spec = self._manifest.input
        check_pixels(pixels, spec)
        self._interpreter.set_tensor(self._input["index"], to_input(pixels, spec))
        self._interpreter.invoke()
        return tuple(
            to_cells(self._float_output(detail), spec)
            for detail, spec in zip(self._outputs, self._manifest.outputs, strict=True)
        )

    def facts(self) -> Mapping[str, Any]:
        """Library, version, threads, precision asked."""
        return self._facts

    def close(self) -> None:
        """Free the interpreter."""
        del self._interpreter

    def _float_output(self, detail: Mapping[str, Any]) -> NDArray[np.float32]:
        tensor = self._interpreter.get_tensor(detail["index"])
        scale, zero_point = detail["quantization"]
        if tensor.dtype.kind in "iu" and scale:
            return np.asarray((tensor.astype(np.float32) - np.float32(zero_point)) * np.float32(scale))
        return np.asarray(tensor, np.float32)


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
