"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.errors import EngineError
from deploy.runtime.engine import not_installed, reason
from deploy.runtime.model_cache import ModelCache
from deploy.runtime.options import Options
from deploy.runtime.tensors import (
    RawTensor,
    check_pixels,
    check_tensors,
    fill_input,
    input_shape,
    output_shape,
    takes_pixels,
)

_OPTIMIZATION = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_REFUSALS = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile", "NotImplemented")
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def load(bundle: Bundle, threads: int, options: Options) -> OnnxEngine:
    """Open an ONNX bundle; see `deploy.runtime.load_engine`."""
    return OnnxEngine(bundle, threads, options)


class OnnxEngine:
    """One ONNX Runtime session with the CPU provider alone, writing into memory that stays."""

    def __init__(self, bundle: Bundle, threads: int, options: Options) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise not_installed(bundle, "onnxruntime", error) from error
        cache = _cache(bundle, str(onnxruntime.__version__), options)
        refused = refusals()
        try:
            self._session = _open_session(onnxruntime, bundle.model_path, cache, threads, options, refused)
        except refused as error:
            library = f"ONNX Runtime {onnxruntime.__version__}"
            raise EngineError(f"{library} refuses {bundle.model_path}: {reason(error)}") from error
        outputs = self._session.get_outputs()
        check_tensors(
            bundle,
            {tensor.name: tensor.shape for tensor in self._session.get_inputs()},
            {tensor.name: tensor.shape for tensor in outputs},
        )
        self._input_spec = bundle.manifest.input
        self._ort_value = onnxruntime.OrtValue
        self._binding = self._session.io_binding()
        self._bind_outputs(bundle, {tensor.name: tensor.type for tensor in outputs})
        self._takes_pixels = takes_pixels(self._input_spec)
        self._input = np.zeros(input_shape(self._input_spec), self._input_spec.dtype)
        self._bind_input()
        self._facts = {
            "library": "onnxruntime",
            "version": str(onnxruntime.__version__),
            "threads": threads,
            "provider": self._session.get_providers()[0],
            "precision_asked": bundle.manifest.precision,
            "options": dict(options),
            "model_cache": cache.state if cache else "off",
        }

    def infer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        """Run one image; see `deploy.runtime.Engine.infer`. The arrays are the caller's."""
        return tuple(np.array(tensor.cells()) for tensor in self.run(pixels))

    def run(self, pixels: NDArray[np.uint8]) -> tuple[RawTensor, ...]:
        """Run one image; see `deploy.runtime.RawEngine.run`."""
        check_pixels(pixels, self._input_spec)
        self._feed(pixels)
        self._session.run_with_iobinding(self._binding)
        return self._outputs

    def own_buffer(self) -> None:
        """None: see `deploy.runtime.RawEngine.own_buffer`."""

    def facts(self) -> Mapping[str, Any]:
        """Library, version, threads, provider, precision asked, options."""
        return self._facts

    def close(self) -> None:
        """Free the session."""
        del self._binding, self._session

    def _bind_outputs(self, bundle: Bundle, types: Mapping[str, str]) -> None:
        """Give the session memory for its outputs, once for all runs."""
        tensors = []
        for spec in bundle.manifest.outputs:
            if types[spec.name] not in _DTYPES:
                raise EngineError(
                    f"{bundle.model_path} has output {spec.name!r} of type {types[spec.name]}, expected one of "
                    f"{', '.join(_DTYPES)}: make the bundle again"
                )
            tensor = RawTensor(
                np.zeros(output_shape(spec, bundle.manifest.input), _DTYPES[types[spec.name]]), spec.layout
            )
            self._binding.bind_ortvalue_output(spec.name, self._ort_value.ortvalue_from_numpy(tensor.values))
            tensors.append(tensor)
        self._outputs = tuple(tensors)

    def _feed(self, pixels: NDArray[np.uint8]) -> None:
        """Let the session read `pixels` where they are, or a converted copy where the model takes another form."""
        if not self._takes_pixels:
            fill_input(pixels, self._input_spec, self._input)
        elif pixels is not self._input:
            self._input = pixels if pixels.flags.c_contiguous and pixels.flags.writeable else pixels.copy()
            self._bind_input()

    def _bind_input(self) -> None:
        # The attribute keeps alive what the session reads.
        self._binding.bind_ortvalue_input(self._input_spec.name, self._ort_value.ortvalue_from_numpy(self._input))


def _cache(bundle: Bundle, version: str, options: Options) -> ModelCache | None:
    """Where the optimised graph is kept; nowhere if there is nothing to optimise."""
    if not options["model_cache"] or options["graph_optimization"] == "disable":
        return None
    parts = {"library": "onnxruntime", "version": version, "optimization": options["graph_optimization"]}
    cache = ModelCache(bundle, ".onnx", parts)
    return cache if cache.enabled else None


def _open_session(
    onnxruntime: Any,
    model: Path,
    cache: ModelCache | None,
    threads: int,
    options: Options,
    refused: tuple[type[Exception], ...],
) -> Any:
    """A session on the optimised graph, that of last time or one made now; on the model where nothing is kept.

    A new one is opened from its file like an old one: the first run executes what all later ones will, and the memory
    that optimising took is free for it again.
    """
    providers = ["CPUExecutionProvider"]
    places = (cache.find, lambda: _optimised(onnxruntime, model, cache, options, refused)) if cache else ()
    for place in places:
        kept = place()
        if cache and kept:
            settings = session_settings(onnxruntime, threads, options)
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised
            try:
                return onnxruntime.InferenceSession(str(kept), settings, providers=providers)
            except refused:
                cache.discard(kept)
    settings = session_settings(onnxruntime, threads, options)
    return onnxruntime.InferenceSession(str(model), settings, providers=providers)


def _optimised(
    onnxruntime: Any, model: Path, cache: ModelCache, options: Options, refused: tuple[type[Exception], ...]
) -> Path | None:
    """Keep the model's optimised graph; None where that cannot be."""
    new = cache.new_file()
    if new is None:
        return None
    settings = session_settings(onnxruntime, 1, options)
    settings.optimized_model_filepath = str(new)
    settings.add_session_config_entry("session.disable_prepacking", "1")  # nothing is run: not a copy of the weights
    try:
        onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    except refused:
        cache.drop(new)  # whose fault it is, the model's or the folder's, the next attempt tells
        return None
    return cache.keep(new)


def refusals() -> tuple[type[Exception], ...]:
    """What a model can make ONNX Runtime raise: its errors have no common root but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    return (*(getattr(errors, name) for name in _REFUSALS if hasattr(errors, name)), RuntimeError)


def session_settings(onnxruntime: Any, threads: int, options: Options) -> Any:
    """ONNX Runtime's `SessionOptions` for the engine's options."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3  # errors only; they are raised anyway
    settings.enable_cpu_mem_arena = bool(options["memory_arena"])
    settings.enable_mem_pattern = bool(options["memory_pattern"])
    level = _OPTIMIZATION[str(options["graph_optimization"])]
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options["allow_spinning"] else "0")
    return settings
