"""Models with the decode inside, as others export them, run by this project's letterbox and NMS.

It needs numpy and the engine alone, so that a process of it has nothing else in its memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from deploy.runtime import Detections, Letterbox, letterbox, read_image
from deploy.runtime.nms import nms

Image = NDArray[np.uint8]
# (1, height, width, 3) uint8 pixels to (4 + classes, cells): centre x, centre y, width, height in input pixels, scores.
DecodedModel = Callable[[Image], NDArray[np.float32]]


def decoded_boxes(
    decoded: NDArray[np.float32], geometry: Letterbox, conf: float, iou: float, max_det: int
) -> Detections:
    """Detections, several classes per cell, of what a `DecodedModel` gives for one letterboxed image."""
    boxes_xywh, scores = decoded[:4].T, decoded[4:].T
    cells, class_ids = np.nonzero(scores > conf)
    centre, size = boxes_xywh[cells, :2], boxes_xywh[cells, 2:]
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    candidates = scores[cells, class_ids]
    kept = nms(boxes, candidates, class_ids, iou, max_det)
    return Detections(geometry.to_source(boxes[kept]), candidates[kept], class_ids[kept])


class DecodedContender:
    """Such a model as a contender of the studies; see `bench.studies.runtime_contenders.Contender`."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._model = open_decoded(Path(request["model"]), int(request["threads"]))
        self._side = int(request["imgsz"])
        self._conf = float(request["conf"])
        self._nms = float(request["iou"]), int(request["max_det"])
        self._threads = int(request["threads"])

    def detect(self, image: Image) -> Detections:
        """See `Contender`."""
        return self.detections(image, self._conf)

    def detect_file(self, path: Path) -> Detections:
        """See `Contender`."""
        return self.detect(read_image(path))

    def detections(self, image: Image, conf: float) -> Detections:
        """See `Contender`; one cell may give several classes."""
        pixels, geometry = letterbox(image, self._side, self._side)
        return decoded_boxes(self._model(pixels), geometry, conf, *self._nms)

    def count(self, found: Detections) -> int:
        """See `Contender`."""
        return len(found)

    def in_its_order(self, rgb: Image) -> Image:
        """See `Contender`."""
        return rgb

    def stages_s(self, image: Image) -> tuple[float, float, float]:
        """See `Contender`."""
        start = time.perf_counter()
        pixels, geometry = letterbox(image, self._side, self._side)
        letterboxed = time.perf_counter()
        decoded = self._model(pixels)
        inferred = time.perf_counter()
        decoded_boxes(decoded, geometry, self._conf, *self._nms)
        return letterboxed - start, inferred - letterboxed, time.perf_counter() - inferred

    def total_and_call_s(self, image: Image) -> tuple[float, float]:
        """Not measured for this contender.

        Raises:
            BenchError: always.
        """
        raise BenchError("the engine's own call is measured for bundles alone")

    def facts(self) -> dict[str, Any]:
        """See `Contender`."""
        return {"threads": self._threads}


def open_decoded(path: Path, threads: int) -> DecodedModel:
    """Open an exported model by its suffix: `.onnx`, a folder with an OpenVINO `.xml`, or `.tflite`."""
    if path.is_dir():
        return _open_openvino(next(path.glob("*.xml")), threads)
    return _open_onnx(path, threads) if path.suffix == ".onnx" else _open_tflite(path, threads)


def _nchw(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def _open_onnx(path: Path, threads: int) -> DecodedModel:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: np.asarray(session.run(None, {name: _nchw(pixels)})[0][0], np.float32)


def _open_openvino(path: Path, threads: int) -> DecodedModel:
    import openvino

    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", config)
    return lambda pixels: np.asarray(compiled(_nchw(pixels))[0][0], np.float32)


def _open_tflite(path: Path, threads: int) -> DecodedModel:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    channels_last = source["shape"][-1] == 3
    side = int(source["shape"][1 if channels_last else 2])

    def run(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        images = _nchw(pixels)
        laid_out = np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if channels_last else images
        interpreter.set_tensor(source["index"], _quantized(laid_out, source))
        interpreter.invoke()
        decoded = _dequantized(interpreter.get_tensor(target["index"])[0], target)
        decoded[:4] *= side  # both tool chains divide the boxes by the input size before quantizing
        return decoded

    return run


def _quantized(values: NDArray[np.float32], detail: dict[str, Any]) -> NDArray[Any]:
    scale, zero_point = detail["quantization"]
    if math.isclose(scale, 0.0):
        return values
    limits = np.iinfo(detail["dtype"])
    quantized = np.clip(np.round(values / scale) + zero_point, limits.min, limits.max)
    return np.asarray(quantized, detail["dtype"])


def _dequantized(values: NDArray[Any], detail: dict[str, Any]) -> NDArray[np.float32]:
    scale, zero_point = detail["quantization"]
    if math.isclose(scale, 0.0):
        return np.array(values, np.float32)
    return np.asarray((values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale), np.float32)
