"""MNN on the CPU."""

from __future__ import annotations

import ctypes
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.errors import EngineError
from deploy.runtime.engine import not_installed
from deploy.runtime.options import Options
from deploy.runtime.tensors import RawTensor, check_pixels, check_tensors, fill_input, input_shape, output_shape

# Left alone, MNN chooses by the processor: say what is meant. The numbers are those of its `BackendConfig`; as words
# it knows some of them only.
_PRECISIONS = {"f32": 1, "f16": 2}
_NORMAL_MEMORY = 0  # 2, low, would leave 8-bit weights as they are and quantize what they multiply at every run
_OF_BUNDLES = {"fp16": "f16"}  # f32 for other bundles
_WINOGRAD_LEVEL = 3  # a number of its `HintMode`
_BACKENDS = 2  # what `getSessionInfo` is asked for
_EXTENSION = 13  # the backend of a processor's own number formats and instructions; 0 is the plain one
_ARM = ("aarch64", "arm64")


def load(bundle: Bundle, threads: int, options: Options) -> MnnEngine:
    """Open an MNN bundle; see `deploy.runtime.load_engine`."""
    return MnnEngine(bundle, threads, options)


class MnnEngine:
    """One interpreter with one session, between tensors of our own that are written and read in place."""

    def __init__(self, bundle: Bundle, threads: int, options: Options) -> None:
        mnn, self._net, self._session = open_session(bundle, threads, options)
        given = self._net.getSessionInputAll(self._session)
        made = self._net.getSessionOutputAll(self._session)
        check_tensors(
            bundle,
            {name: tensor.getShape() for name, tensor in given.items()},
            {name: tensor.getShape() for name, tensor in made.items()},
        )
        self._input_spec = bundle.manifest.input
        self._given = given[self._input_spec.name]
        self._input, self._pixels = host_tensor(mnn, input_shape(self._input_spec))
        self._outputs = []
        for output in bundle.manifest.outputs:
            tensor, values = host_tensor(mnn, output_shape(output, self._input_spec))
            self._outputs.append((made[output.name], tensor, RawTensor(values, output.layout)))
        self._facts = {
            "library": "MNN",
            "version": str(mnn.version()),
            "threads": threads,
            "precision_asked": bundle.manifest.precision,
            "inference_precision_asked": asked_precision(bundle, options),
            "inference_precision_executed": executed_precision(bundle, options, self._net, self._session),
            "options": dict(options),
        }

    def infer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
        """Run one image; see `deploy.runtime.Engine.infer`. The arrays are the caller's."""
        return tuple(np.array(tensor.cells()) for tensor in self.run(pixels))

    def run(self, pixels: NDArray[np.uint8]) -> tuple[RawTensor, ...]:
        """Run one image; see `deploy.runtime.RawEngine.run`."""
        check_pixels(pixels, self._input_spec)
        fill_input(pixels, self._input_spec, self._pixels)
        self._given.copyFromHostTensor(self._input)
        self._net.runSession(self._session)
        for made, tensor, _ in self._outputs:
            made.copyToHostTensor(tensor)
        return tuple(raw for _, _, raw in self._outputs)

    def own_buffer(self) -> None:
        """None: see `deploy.runtime.RawEngine.own_buffer`."""

    def facts(self) -> Mapping[str, Any]:
        """Library, version, threads, precision asked, that of what is not quantized asked and executed, options."""
        return self._facts

    def close(self) -> None:
        """Free the network, and our own tensors once the last array of them is gone."""
        del self._outputs, self._given, self._input, self._pixels, self._session, self._net


class _Memory:
    """A tensor's memory for numpy: the arrays of `Tensor.getNumpyData` do not keep it alive, these do."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self.__array_interface__ = dict(tensor.getNumpyData().__array_interface__)


def host_tensor(mnn: Any, shape: tuple[int, ...]) -> tuple[Any, NDArray[np.float32]]:
    """A float32 tensor of MNN's outside any network, channels first, and its memory."""
    tensor = mnn.Tensor(shape, mnn.Halide_Type_Float, np.zeros(shape, np.float32), mnn.Tensor_DimensionType_Caffe)
    return tensor, np.asarray(_Memory(tensor))


def open_session(bundle: Bundle, threads: int, options: Options) -> tuple[Any, Any, Any]:
    """The imported package, the interpreter of the bundle's model and its session.

    Raises:
        EngineNotInstalledError: the package cannot be imported.
        EngineError: it refuses the model.
    """
    with _kept_quiet() as said:
        try:
            import MNN
        except ImportError as error:
            raise not_installed(bundle, "MNN", error) from error
        settings = {
            "backend": "CPU",
            "numThread": threads,
            "precision": _PRECISIONS[asked_precision(bundle, options)],
            "memory": _NORMAL_MEMORY,
        }
        try:
            net = MNN.Interpreter(str(bundle.model_path))
            net.setSessionHint(_WINOGRAD_LEVEL, options["winograd_level"])
            session = net.createSession(settings)
        except Exception as error:  # it raises nothing more special
            _flush()
            said.seek(0)
            reason = " ".join(said.read().decode(errors="replace").split()) or str(error)
            raise EngineError(f"MNN {MNN.version()} refuses {bundle.model_path}: {reason[-300:]}") from error
    return MNN, net, session


def asked_precision(bundle: Bundle, options: Options) -> str:
    """What layers that are not quantized shall be computed in."""
    asked = str(options["inference_precision"])
    return _OF_BUNDLES.get(bundle.manifest.precision, "f32") if asked == "bundle" else asked


def executed_precision(bundle: Bundle, options: Options, net: Any, session: Any) -> str:
    """What layers that are not quantized are computed in.

    On ARM, fp16 has a backend of its own where the processor has it. On x86 there is none, and what is asked for as
    fp16 is computed in fp32.
    """
    halved = asked_precision(bundle, options) == "f16" and platform.machine() in _ARM
    return "f16" if halved and net.getSessionInfo(session, _BACKENDS) == _EXTENSION else "f32"


@contextmanager
def _kept_quiet() -> Iterator[IO[bytes]]:
    """Keep off stdout, where only results belong, what MNN 3.6 prints there when it is imported and opens a model.

    Yields:
        A file with what was printed, once `_flush` was called.
    """
    with tempfile.TemporaryFile() as kept:
        saved = os.dup(1)
        os.dup2(kept.fileno(), 1)
        try:
            yield kept
        finally:
            _flush()
            os.dup2(saved, 1)
            os.close(saved)


def _flush() -> None:
    """Write out what C holds back of its stdout."""
    ctypes.CDLL(None).fflush(None)
