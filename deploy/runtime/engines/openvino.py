"""OpenVINO on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.errors import EngineError
from deploy.runtime.engine import not_installed, reason
from deploy.runtime.model_cache import ModelCache
from deploy.runtime.options import Options
from deploy.runtime.tensors import RawTensor, check_pixels, check_tensors, fill_input, takes_pixels

# Left alone, OpenVINO runs a float model in bf16 on x86 with AMX and in fp16 on ARM: say what is meant.
_PRECISION_HINTS = {"fp16": "f16", "bf16": "bf16"}  # of the layers that are not quantized; f32 for other bundles
_MAX_CPU_ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # environment variables that oneDNN reads once a process
_FIRST: dict[str, str] = {}  # what the first bundle that this process opened decided
_BELOW_AMX = "AVX512_CORE_FP16"  # all that x86 has but AMX; more than a lesser processor has changes nothing there


def load(bundle: Bundle, threads: int, options: Options) -> OpenvinoEngine:
    """Open an OpenVINO bundle; see `deploy.runtime.load_engine`."""
    return OpenvinoEngine(bundle, threads, options)


class OpenvinoEngine:
    """One compiled model and one inference request, in memory that stays."""

    def __init__(self, bundle: Bundle, threads: int, options: Options) -> None:
        try:
            import openvino
        except ImportError as error:
            raise not_installed(bundle, "openvino", error) from error
        version = str(openvino.__version__).split("-")[0]
        core = open_core(openvino, bundle, options)
        config = settings(bundle, threads, options)
        cache = _cache(bundle, version, config) if options["model_cache"] else None
        try:
            compiled = _compiled(core, bundle.model_path, cache, config)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO {version} refuses {bundle.model_path}: {reason(error)}") from error
        check_tensors(bundle, _shapes(compiled.inputs), _shapes(compiled.outputs))
        self._input_spec = bundle.manifest.input
        self._tensor = openvino.Tensor
        self._request = compiled.create_infer_request()
        self._takes_pixels = takes_pixels(self._input_spec)
        self._input = self._request.get_input_tensor().data
        self._outputs = tuple(
            RawTensor(self._request.get_tensor(compiled.output(output.name)).data, output.layout)
            for output in bundle.manifest.outputs
        )
        executed = compiled.get_property("INFERENCE_PRECISION_HINT")
        self._facts = {
            "library": "openvino",
            "version": version,
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "precision_asked": bundle.manifest.precision,
            "precision_hint_asked": config["INFERENCE_PRECISION_HINT"],
            "precision_hint_executed": str(getattr(executed, "to_string", lambda: executed)()),
            "streams_executed": int(compiled.get_property("NUM_STREAMS")),
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
        self._request.start_async()  # unlike infer(), it does not copy the outputs
        self._request.wait()
        return self._outputs

    def own_buffer(self) -> None:
        """None: see `deploy.runtime.RawEngine.own_buffer`."""

    def facts(self) -> Mapping[str, Any]:
        """Library, version, threads, precision asked, and its hint asked and executed, streams, options."""
        return self._facts

    def close(self) -> None:
        """Free the model."""
        del self._request, self._outputs, self._input

    def _feed(self, pixels: NDArray[np.uint8]) -> None:
        """Let the request read `pixels` where they are, or a converted copy where the model takes another form."""
        if not self._takes_pixels:
            fill_input(pixels, self._input_spec, self._input)
        elif pixels is not self._input:
            # The attribute keeps alive what the request reads.
            self._input = pixels if pixels.flags.c_contiguous and pixels.flags.writeable else pixels.copy()
            self._request.set_input_tensor(self._tensor(self._input, shared_memory=True))


def open_core(openvino: Any, bundle: Bundle, options: Options) -> Any:
    """An `openvino.Core` that computes with the instructions that the bundle is fastest in.

    OpenVINO 2026.4 multiplies int8 activations that have a zero point by a slow path of AMX: an INT8 YOLOv8-n takes 1.3
    to 1.6 times as long with AMX as with the AVX-512 instructions of the same processor, to the same result. oneDNN
    decides once a process what it uses, when OpenVINO is first asked what the processor can: the first bundle that a
    process opens decides for it, and what the environment says goes before that.

    Args:
        openvino: the imported package.
        bundle: with its precision.
        options: with `amx`: `auto`, `on` or `off`.
    """
    core = openvino.Core()
    off = options["amx"] == "off" or (options["amx"] == "auto" and bundle.manifest.precision == "int8")
    limited = off and not any(os.environ.get(name) for name in _MAX_CPU_ISA)
    _FIRST.setdefault("instructions", _BELOW_AMX if limited else "as the environment says")
    if limited:
        os.environ[_MAX_CPU_ISA[0]] = _BELOW_AMX
        try:
            core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # oneDNN reads the environment now
        finally:
            del os.environ[_MAX_CPU_ISA[0]]  # processes that this one starts decide for themselves
    else:
        core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return core


def settings(bundle: Bundle, threads: int, options: Options) -> dict[str, Any]:
    """What OpenVINO is asked for, by the names of its properties."""
    asked = options["inference_precision"]
    if asked == "bundle":
        asked = _PRECISION_HINTS.get(bundle.manifest.precision, "f32")
    return {
        "PERFORMANCE_HINT": str(options["hint"]).upper(),
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": options["streams"],
        "INFERENCE_PRECISION_HINT": asked,
    }


def _cache(bundle: Bundle, version: str, config: Mapping[str, Any]) -> ModelCache | None:
    # A model that was compiled with other instructions is refused.
    parts = {"library": "openvino", "version": version, "config": dict(config), **_FIRST}
    cache = ModelCache(bundle, ".blob", parts)
    return cache if cache.enabled else None


def _compiled(core: Any, model: Path, cache: ModelCache | None, config: Mapping[str, Any]) -> Any:
    """The compiled model of last time, or the model compiled, and kept."""
    kept = cache.find() if cache else None
    if cache and kept:
        try:
            return core.import_model(kept.read_bytes(), "CPU", config)
        except (RuntimeError, OSError):
            cache.discard(kept)
    compiled = core.compile_model(str(model), "CPU", config)
    new = cache.new_file() if cache else None
    if cache and new:
        try:
            new.write_bytes(compiled.export_model().getbuffer())
        except (RuntimeError, OSError) as error:
            cache.drop(new)
            cache.give_up(error)
        else:
            cache.keep(new)
    return compiled


def _shapes(ports: Iterable[Any]) -> dict[str, list[object]]:
    """Shape by every name that a port has; a side that is free is no whole number."""
    return {
        name: [side.get_length() if side.is_static else str(side) for side in port.get_partial_shape()]
        for port in ports
        for name in port.get_names()
    }
