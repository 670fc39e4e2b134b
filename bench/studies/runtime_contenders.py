"""The contenders of the studies behind one face: this project's `Detector`, ultralytics' `predict`, decoded models."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.studies.decoded import DecodedContender
from bench.studies.forced import force_openvino_precision, force_threads
from deploy.bundle import Bundle
from deploy.runtime import Detections, Detector

Image = NDArray[np.uint8]

# The class and the methods by which a runtime is asked to run its network once.
_ENGINE_CALLS = {
    "onnx": ("onnxruntime", "InferenceSession", ("run", "run_with_iobinding", "run_with_ort_values")),
    "openvino": ("openvino", "InferRequest", ("infer", "start_async", "wait")),
    "tflite": ("ai_edge_litert.interpreter", "Interpreter", ("invoke",)),
}


class Contender(Protocol):
    """One model, opened, from a decoded image to boxes. What `detect` returns is the contender's own."""

    def detect(self, image: Image) -> Any:
        """Detect at the thresholds it was opened with; this is what is timed."""

    def detect_file(self, path: Path) -> Any:
        """Detect in an image file, as its users would."""

    def detections(self, image: Image, conf: float) -> Detections:
        """Detect at another score threshold."""

    def count(self, found: Any) -> int:
        """How many boxes `detect` returned."""

    def in_its_order(self, rgb: Image) -> Image:
        """The image in the channel order that this contender takes."""

    def stages_s(self, image: Image) -> tuple[float, float, float]:
        """Seconds of preprocessing, inference and postprocessing of `image`."""

    def total_and_call_s(self, image: Image) -> tuple[float, float]:
        """Seconds of `detect`, and of the engine's own call alone, repeated on the same input right afterwards."""

    def facts(self) -> dict[str, Any]:
        """What runs: library, threads, executed precision."""


def open_contender(request: Mapping[str, Any]) -> Contender:
    """Open a contender.

    Args:
        request: `kind` ("bundle", "ultralytics" or "decoded"), `model` (path), `engine`, `imgsz`, `threads`, `conf`,
            `iou`, `max_det`; for a bundle `options` (of its engine) and `resize` (what resizes images, see
            `deploy.runtime.resize`) and `cache` (folder of opened models); for ultralytics `predict` (further
            arguments of `predict`), `threads_forced` (LiteRT, ONNX Runtime) and `precision_forced` (OpenVINO).

    Raises:
        BenchError: an unknown kind.
        DeployError: the bundle or its engine cannot be used.
    """
    kinds: dict[str, Callable[[Mapping[str, Any]], Contender]] = {
        "bundle": BundleContender,
        "ultralytics": UltralyticsContender,
        "decoded": DecodedContender,
    }
    if request["kind"] not in kinds:
        raise BenchError(f"contender {request['kind']!r} is unknown, known are {', '.join(kinds)}")
    return kinds[request["kind"]](request)


class BundleContender:
    """A bundle by `deploy.runtime.Detector`."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        if request.get("resize"):
            os.environ["EDGE_DISTILL_RESIZE"] = str(request["resize"])
        if request.get("cache"):
            os.environ["EDGE_DISTILL_CACHE"] = str(request["cache"])
        bundle = Bundle.open(request["model"])
        self._engine_name = bundle.manifest.engine
        self._thresholds = (float(request["conf"]), float(request["iou"]), int(request["max_det"]))
        self._call = _EngineCall(self._engine_name)
        self._detector = Detector(
            bundle, *self._thresholds, threads=int(request["threads"]), options=request.get("options")
        )
        self._buffer = self._detector.new_buffer()
        self._at: dict[float, Detector] = {}

    def detect(self, image: Image) -> Detections:
        """See `Contender`."""
        return self._detector(image)

    def detect_file(self, path: Path) -> Detections:
        """See `Contender`."""
        return self._detector(path)

    def detections(self, image: Image, conf: float) -> Detections:
        """See `Contender`; one cell gives one class at every threshold, as `predict` does it."""
        if conf not in self._at:
            _, iou, max_det = self._thresholds
            self._at[conf] = Detector.with_engine(self._detector.engine, self._detector.manifest, conf, iou, max_det)
        return self._at[conf](image)

    def count(self, found: Detections) -> int:
        """See `Contender`."""
        return len(found)

    def in_its_order(self, rgb: Image) -> Image:
        """See `Contender`."""
        return rgb

    def stages_s(self, image: Image) -> tuple[float, float, float]:
        """See `Contender`; by the stages that a call is made of."""
        start = time.perf_counter()
        pixels, geometry = self._detector.preprocess(image, self._buffer)
        letterboxed = time.perf_counter()
        outputs = self._detector.run(pixels)
        inferred = time.perf_counter()
        self._detector.postprocess(outputs, geometry)
        return letterboxed - start, inferred - letterboxed, time.perf_counter() - inferred

    def total_and_call_s(self, image: Image) -> tuple[float, float]:
        """See `Contender`."""
        with self._call.recorded():
            start = time.perf_counter()
            self._detector(image)
            total_s = time.perf_counter() - start
        return total_s, self._call.repeated_s()

    def facts(self) -> dict[str, Any]:
        """See `Contender`."""
        return dict(self._detector.engine.facts())


class UltralyticsContender:
    """An export, or a checkpoint, by ultralytics' `predict`: one call per image, on a BGR array."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._engine_name = str(request["engine"])
        if request.get("precision_forced"):
            force_openvino_precision(str(request["precision_forced"]))
        from ultralytics import YOLO

        if request.get("threads_forced"):
            force_threads(self._engine_name, int(request["threads"]))
        self._model = YOLO(str(request["model"]), task="detect")
        self._arguments = {
            "imgsz": int(request["imgsz"]),
            "conf": float(request["conf"]),
            "iou": float(request["iou"]),
            "max_det": int(request["max_det"]),
            "verbose": False,
            **request.get("predict", {}),
        }
        self._model.predict(np.zeros((64, 64, 3), np.uint8), **self._arguments)  # opens the model

    def detect(self, image: Image | str) -> Any:
        """See `Contender`."""
        return self._model.predict(image, **self._arguments)[0].boxes

    def detect_file(self, path: Path) -> Any:
        """See `Contender`."""
        return self.detect(str(path))

    def detections(self, image: Image, conf: float) -> Detections:
        """See `Contender`."""
        boxes = self._model.predict(image, **{**self._arguments, "conf": conf})[0].boxes
        return Detections(
            np.asarray(boxes.xyxy.numpy(), np.float32),
            np.asarray(boxes.conf.numpy(), np.float32),
            np.asarray(boxes.cls.numpy(), np.int64),
        )

    def count(self, found: Any) -> int:
        """See `Contender`."""
        return len(found)

    def in_its_order(self, rgb: Image) -> Image:
        """See `Contender`; BGR, as OpenCV reads files."""
        return np.ascontiguousarray(rgb[..., ::-1])

    def stages_s(self, image: Image) -> tuple[float, float, float]:
        """See `Contender`; as `Results.speed` gives them."""
        speed = self._model.predict(image, **self._arguments)[0].speed
        return speed["preprocess"] / 1e3, speed["inference"] / 1e3, speed["postprocess"] / 1e3

    def total_and_call_s(self, image: Image) -> tuple[float, float]:
        """Not measured for this contender.

        Raises:
            BenchError: always.
        """
        raise BenchError("the engine's own call is measured for bundles alone")

    def facts(self) -> dict[str, Any]:
        """See `Contender`."""
        backend = self._model.predictor.model.backend
        facts: dict[str, Any] = {"backend": type(backend).__name__}
        if self._engine_name == "onnx":
            facts["threads"] = int(backend.session.get_session_options().intra_op_num_threads)
        elif self._engine_name == "openvino":
            compiled = backend.ov_compiled_model
            hint = compiled.get_property("INFERENCE_PRECISION_HINT")
            facts["threads"] = int(compiled.get_property("INFERENCE_NUM_THREADS"))
            facts["precision_hint_executed"] = str(getattr(hint, "to_string", lambda: hint)())
        elif self._engine_name == "tflite":
            module = importlib.import_module("ultralytics.nn.backends.litert")
            facts["threads"] = int(module.__dict__["NUM_THREADS"])
        return facts


class _EngineCall:
    """The runtime library's own call for one inference: recorded as the engine makes it, then repeated alone.

    Recording stands between the engine and the library only while `recorded` is open, so that nothing else is slowed.
    """

    def __init__(self, engine: str) -> None:
        module, class_name, self._methods = _ENGINE_CALLS[engine]
        self._module, self._class_name = module, class_name
        self._calls: list[Callable[[], object]] = []

    def recorded(self) -> _Recording:
        """A context in which the calls of the library are remembered: one, or starting it and waiting for it."""
        self._calls = []
        owner = getattr(importlib.import_module(self._module), self._class_name)
        return _Recording(owner, [name for name in self._methods if hasattr(owner, name)], self._calls.append)

    def repeated_s(self) -> float:
        """Seconds of the remembered calls, made once more with the same arguments.

        Raises:
            BenchError: no call was seen: the engine reaches its library by another way than this study knows.
        """
        if not self._calls:
            raise BenchError(f"no call of {self._class_name}.{' or '.join(self._methods)} was seen")
        start = time.perf_counter()
        for call in self._calls:
            call()
        return time.perf_counter() - start


class _Recording:
    """Replaces methods of a class by ones that tell of each call, until it is left."""

    def __init__(self, owner: type, methods: list[str], remember: Callable[[Callable[[], object]], None]) -> None:
        self._owner, self._methods, self._remember = owner, methods, remember
        self._own: dict[str, Any] = {}

    def __enter__(self) -> None:
        for name in self._methods:
            original = getattr(self._owner, name)
            self._own[name] = self._owner.__dict__.get(name)
            setattr(self._owner, name, self._telling(original))

    def __exit__(self, *_: object) -> None:
        for name, own in self._own.items():
            if own is None:
                delattr(self._owner, name)
            else:
                setattr(self._owner, name, own)

    def _telling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            self._remember(lambda: original(*arguments, **keywords))
            return original(*arguments, **keywords)

        return call
