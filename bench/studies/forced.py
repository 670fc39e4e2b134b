"""What ultralytics' `predict` has no argument for, set by hand in this process, so that both sides run alike."""

from __future__ import annotations

import importlib
from typing import Any


def force_threads(engine: str, threads: int) -> None:
    """Have ultralytics' LiteRT and ONNX Runtime take a number of threads: `predict` has no argument for it."""
    if engine == "tflite":  # it asks for min(8, processors - 1)
        importlib.import_module("ultralytics.nn.backends.litert").__dict__["NUM_THREADS"] = threads
    elif engine == "onnx":  # it leaves them to the library, which takes processors that the process may not use
        import onnxruntime

        open_session = onnxruntime.InferenceSession

        def limited(model: Any, options: Any = None, *rest: Any, **named: Any) -> Any:
            chosen = options or onnxruntime.SessionOptions()
            chosen.intra_op_num_threads = threads
            return open_session(model, chosen, *rest, **named)

        onnxruntime.InferenceSession = limited


def force_openvino_precision(precision: str) -> None:
    """Have every model compiled at `precision`: `predict` has no argument for it."""
    import openvino

    compile_model = openvino.Core.compile_model

    def compile_at(core: Any, model: Any, device_name: Any = None, config: Any = None, **keywords: Any) -> Any:
        forced = {**(config or {}), "INFERENCE_PRECISION_HINT": precision}
        return compile_model(core, model, device_name, forced, **keywords)

    openvino.Core.compile_model = compile_at
