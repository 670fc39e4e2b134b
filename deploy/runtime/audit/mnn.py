"""What MNN executed: it calls back before and after every operation, with its kind, its work and its number format.

An operation that is executed in int8 is marked `[ DT_INT8 ]` behind its kind; the casts that MNN puts in between are
operations of their own.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.runtime.audit.operators import CONVERSION, CONVOLUTION, OTHER, PRODUCT, Executed, Operator, precision_of
from deploy.runtime.engines.mnn import executed_precision, host_tensor, open_session
from deploy.runtime.options import Options
from deploy.runtime.tensors import fill_input, input_shape

_ROLES = {
    **dict.fromkeys(("Convolution", "ConvolutionDepthwise", "Deconvolution", "DeconvolutionDepthwise"), CONVOLUTION),
    **dict.fromkeys(("MatMul", "BatchMatMul"), PRODUCT),
    **dict.fromkeys(("FloatToInt8", "Int8ToFloat", "Cast"), CONVERSION),
}
_INT8 = "DT_INT8"
_PER_UNIT = 1e6  # multiplications in one of the units that MNN tells work in, a 32-bit float


def executed(bundle: Bundle, threads: int, options: Options, pixels: NDArray[np.uint8], runs: int) -> Executed:
    """Run a bundle and ask; see `deploy.runtime.audit.executed`."""
    mnn, net, session = open_session(bundle, threads, options)
    spec = bundle.manifest.input
    given, values = host_tensor(mnn, input_shape(spec))
    fill_input(pixels, spec, values)
    elsewhere = precision_of(executed_precision(bundle, options, net, session))
    recorder = _Recorder(elsewhere)
    for _ in range(max(runs, 1)):
        recorder.rewind()
        net.getSessionInput(session, spec.name).copyFromHostTensor(given)
        net.runSessionWithCallBackInfo(session, recorder.before, recorder.after)
    return Executed("MNN", str(mnn.version()), recorder.operators(max(runs, 1)))


class _Recorder:
    """The operations of a network in the order in which they run, the same in every run."""

    def __init__(self, elsewhere: str) -> None:
        self._elsewhere = elsewhere  # precision of what is not marked
        self._found: list[Operator] = []
        self._seconds: list[float] = []
        self._at, self._start_s = 0, 0.0

    def rewind(self) -> None:
        """Another run begins."""
        self._at = 0

    def before(self, _tensors: Any, _operation: Any) -> bool:
        """An operation begins; True has it run."""
        self._start_s = time.perf_counter()
        return True

    def after(self, tensors: Any, operation: Any) -> bool:
        """It is done; True goes on."""
        elapsed_s = time.perf_counter() - self._start_s
        if self._at == len(self._found):
            self._found.append(self._operator(tensors, operation))
            self._seconds.append(0.0)
        self._seconds[self._at] += elapsed_s
        self._at += 1
        return True

    def operators(self, runs: int) -> tuple[Operator, ...]:
        """All of them, with the mean time of one run."""
        return tuple(
            Operator(one.name, one.kind, one.role, one.precision, one.kernel, one.macs, seconds / runs)
            for one, seconds in zip(self._found, self._seconds, strict=True)
        )

    def _operator(self, tensors: Any, operation: Any) -> Operator:
        kind, _, mark = operation.getType().partition("[")
        kind = kind.strip()
        role = _ROLES.get(kind, OTHER)
        precision = "INT8" if _INT8 in mark else self._elsewhere
        macs = _macs(operation.getFlops(), tensors) if role in (CONVOLUTION, PRODUCT) else 0
        return Operator(operation.getName(), kind, role, precision, "MNN CPU", macs)


def _macs(work: float, tensors: Any) -> int:
    """MNN's figure has 24 bits: what one value of the output costs is a whole number, and so told exactly."""
    values = math.prod(tensors[0].getShape()) if tensors else 0
    return values * round(work * _PER_UNIT / values) if values else 0
