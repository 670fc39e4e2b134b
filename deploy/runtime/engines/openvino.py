"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.errors import EngineError
from deploy.runtime.engine import check_tensors, not_installed, to_cells, to_input

# Left alone, OpenVINO runs a float model in bf16 on x86 with AMX and in fp16 on ARM: say what is meant.
_PRECISION_HINTS = {"fp32": "f32", "fp16": "f16", "int8": "f32"}


def load(bundle: Bundle, threads: int) -> OpenvinoEngine:
    """Open an OpenVINO bundle; see `deploy.runtime.load_engine`."""
    return OpenvinoEngine(bundle, threads)


class OpenvinoEngine:
    """One compiled model and one inference request, for latency."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise not_installed(bundle, "openvino", error) from error
        asked = _PRECISION_HINTS[bundle.manifest.precision]
        core = openvino.Core()
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": asked,
        }
        try:
            compiled = core.compile_model(str(bundle.model_path), "CPU", config)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO {openvino.__version__} refuses {bundle.model_path}: {error}") from error
        check_tensors(bundle, _shapes(compiled.inputs), _shapes(compiled.outputs))
        self._manifest = bundle.manifest
        self._request = compiled.create_infer_request()
        self._ports = [compiled.output(output.name) for output in bundle.manifest.outputs]
        executed = compiled.get_property("INFERENCE_PRECISION_HINT")
        self._facts = {
            "library": "openvino",
            "version": str(openvino.__version__).split("-")[0],
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "precision_asked": bundle.manifest.precision,
            "precision_hint_asked": asked,
            "precision_hint_executed": str(getattr(executed, "to_string", lambda: executed)()),
        }

    def infer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        """Run one image; see `deploy.runtime.Engine.infer`."""
        self._request.infer([to_input(pixels, self._manifest.input)], share_inputs=True)
        tensors = [self._request.get_tensor(port).data for port in self._ports]
        return tuple(to_cells(tensor, spec) for tensor, spec in zip(tensors, self._manifest.outputs, strict=True))

    def facts(self) -> Mapping[str, Any]:
        """Library, version, threads, precision asked, and its hint asked and executed."""
        return self._facts

    def close(self) -> None:
        """Free the model."""
        del self._request, self._ports


def _shapes(ports: Iterable[Any]) -> dict[str, list[object]]:
    """Shape by every name that a port has; a side that is free is no whole number."""
    return {
        name: [side.get_length() if side.is_static else str(side) for side in port.get_partial_shape()]
        for port in ports
        for name in port.get_names()
    }
