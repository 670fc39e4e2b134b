"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.errors import EngineError
from deploy.runtime.engine import check_tensors, not_installed, to_cells, to_input


def load(bundle: Bundle, threads: int) -> OnnxEngine:
    """Open an ONNX bundle; see `deploy.runtime.load_engine`."""
    return OnnxEngine(bundle, threads)


class OnnxEngine:
    """One ONNX Runtime session with the CPU provider alone."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
        except ImportError as error:
            raise not_installed(bundle, "onnxruntime", error) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only; they are raised anyway
        refused = tuple(
            getattr(ort_errors, name)
            for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NotImplemented")
        )
        try:
            self._session = onnxruntime.InferenceSession(
                str(bundle.model_path), options, providers=["CPUExecutionProvider"]
            )
        except (*refused, RuntimeError) as error:
            raise EngineError(f"ONNX Runtime {onnxruntime.__version__} refuses {bundle.model_path}: {error}") from error
        check_tensors(
            bundle,
            {tensor.name: tensor.shape for tensor in self._session.get_inputs()},
            {tensor.name: tensor.shape for tensor in self._session.get_outputs()},
        )
        self._manifest = bundle.manifest
        self._output_names = [output.name for output in bundle.manifest.outputs]
        self._facts = {
            "library": "onnxruntime",
            "version": str(onnxruntime.__version__),
            "threads": threads,
            "provider": self._session.get_providers()[0],
            "precision_asked": bundle.manifest.precision,
        }

    def infer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        """Run one image; see `deploy.runtime.Engine.infer`."""
        feed = {self._manifest.input.name: to_input(pixels, self._manifest.input)}
        tensors = self._session.run(self._output_names, feed)
        return tuple(to_cells(tensor, spec) for tensor, spec in zip(tensors, self._manifest.outputs, strict=True))

    def facts(self) -> Mapping[str, Any]:
        """Library, version, threads, provider, precision asked."""
        return self._facts

    def close(self) -> None:
        """Free the session."""
        del self._session
