"""ncnn on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.errors import EngineError
from deploy.runtime.engine import not_installed
from deploy.runtime.options import Options
from deploy.runtime.tensors import RawTensor, check_pixels, check_tensors, fill_input, input_shape

# Left alone, ncnn computes a float model in fp16 on ARM: say what is meant.
_PRECISIONS = {"fp32": "f32", "fp16": "f16", "int8": "f32"}
_FP16, _BF16 = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"), ("use_bf16_packed", "use_bf16_storage")
_INPUT = "Input"


def load(bundle: Bundle, threads: int, options: Options) -> NcnnEngine:
    """Open an ncnn bundle; see `deploy.runtime.load_engine`."""
    return NcnnEngine(bundle, threads, options)


class NcnnEngine:
    """One network; each image has an extractor of its own, as ncnn wants it."""

    def __init__(self, bundle: Bundle, threads: int, options: Options) -> None:
        try:
            import ncnn
        except ImportError as error:
            raise not_installed(bundle, "ncnn", error) from error
        self._ncnn = ncnn
        self._input_spec = bundle.manifest.input
        self._outputs = bundle.manifest.outputs
        asked = str(options["inference_precision"])
        if asked == "bundle":
            asked = _PRECISIONS[bundle.manifest.precision]
        self._net = _opened(ncnn, bundle.model_path, threads, asked, options)
        self._input = np.zeros(input_shape(self._input_spec), np.float32)
        self._check(bundle)
        self._facts = {
            "library": "ncnn",
            "version": str(ncnn.__version__),
            "threads": threads,
            "precision_asked": bundle.manifest.precision,
            "inference_precision_asked": asked,
            "inference_precision_executed": _executed(self._net, asked),
            "options": dict(options),
        }

    def infer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        """Run one image; see `deploy.runtime.Engine.infer`. The arrays are the caller's."""
        return tuple(tensor.cells() for tensor in self.run(pixels))

    def run(self, pixels: NDArray[np.uint8]) -> tuple[RawTensor, ...]:
        """Run one image; see `deploy.runtime.RawEngine.run`. Every run has memory of its own."""
        check_pixels(pixels, self._input_spec)
        fill_input(pixels, self._input_spec, self._input)
        values = self._extracted()
        return tuple(RawTensor(values[output.name], output.layout) for output in self._outputs)

    def own_buffer(self) -> None:
        """None: see `deploy.runtime.RawEngine.own_buffer`."""

    def facts(self) -> Mapping[str, Any]:
        """Library, version, threads, precision asked, that of what is not quantized asked and executed, options."""
        return self._facts

    def close(self) -> None:
        """Free the network."""
        self._net.clear()
        del self._net

    def _extracted(self) -> dict[str, NDArray[np.float32]]:
        """Output name to tensor (1, C, H, W) or (1, C), of the image in the input's memory."""
        extractor = self._net.create_extractor()
        extractor.input(self._input_spec.name, self._ncnn.Mat(self._input[0]))
        tensors = {}
        for output in self._outputs:
            status, tensor = extractor.extract(output.name)
            if status != 0:
                raise EngineError(
                    f"ncnn cannot compute output {output.name!r} (status {status}): is there memory left?"
                )
            tensors[output.name] = np.asarray(tensor)[None]  # a view, which keeps its memory
        return tensors

    def _check(self, bundle: Bundle) -> None:
        """Refuse a model that is not the manifest's. Its file has the input's shape; the outputs' show in a run."""
        stated = {name: _stated_shape(bundle.model_path, name) for name in self._net.input_names()}
        names = dict.fromkeys(self._net.output_names(), ())
        given = input_shape(self._input_spec)
        if stated.get(self._input_spec.name) == given and all(output.name in names for output in self._outputs):
            check_tensors(bundle, stated, {name: tensor.shape for name, tensor in self._extracted().items()})
        else:
            check_tensors(
                bundle, stated, {output.name: () for output in self._outputs if output.name in names} or names
            )


def _opened(ncnn: Any, model: Path, threads: int, precision: str, options: Options) -> Any:
    net = ncnn.Net()
    settings = net.opt
    settings.use_vulkan_compute = False
    settings.num_threads = threads
    settings.lightmode = options["light_mode"]
    settings.use_packing_layout = options["packing"]
    settings.use_winograd_convolution = options["winograd"]
    settings.use_sgemm_convolution = options["sgemm"]
    settings.openmp_blocktime = options["block_time_ms"]
    for names, kind in ((_FP16, "f16"), (_BF16, "bf16")):
        for name in names:
            setattr(settings, name, precision == kind)
    weights = model.with_suffix(".bin")
    for file, status in ((model, net.load_param(str(model))), (weights, net.load_model(str(weights)))):
        if status != 0:
            raise EngineError(f"ncnn {ncnn.__version__} refuses {file} (status {status}): make the bundle again")
    return net


def _executed(net: Any, asked: str) -> str:
    """What layers that are not quantized are computed in: f32 where this processor has none of what was asked."""
    supports = {"f16": "support_fp16_storage", "bf16": "support_bf16_storage"}.get(asked)
    layers = net.layers()
    return asked if supports and any(getattr(layer, supports) for layer in layers) else "f32"


def _stated_shape(model: Path, name: str) -> tuple[int, ...]:
    """(1, channels, height, width) of an input, as its line in the file says."""
    for line in model.read_text(encoding="ascii", errors="replace").splitlines():
        words = line.split()
        if words[:1] == [_INPUT] and name in words[4:]:
            sides = dict(word.split("=", 1) for word in words if "=" in word)
            return (1, *(int(sides.get(number, 0)) for number in ("2", "1", "0")))
    return ()
