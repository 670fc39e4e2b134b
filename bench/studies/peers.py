"""Models as others export them, and INT8 ones run by this project's letterbox and NMS: only the network differs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from deploy.calibration import evenly_spaced
from deploy.dataset import LabelledImage, load_dataset
from deploy.runtime import Detections, Letterbox
from deploy.runtime.nms import nms
from deploy.verify import SCORING_CONF, SCORING_IOU, SCORING_MAX_DET

# (1, height, width, 3) uint8 pixels to (4 + classes, cells): centre x, centre y, width, height in input pixels, scores.
DecodedModel = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

EXPORT_FORMATS = ("onnx", "openvino", "litert")


def detect_decoded(model: DecodedModel, pixels: NDArray[np.uint8], geometry: Letterbox) -> Detections:
    """Detections of one letterboxed image by a model with the decode inside, at the thresholds of scoring."""
    decoded = model(pixels)
    boxes_xywh, scores = decoded[:4].T, decoded[4:].T
    cells, class_ids = np.nonzero(scores > SCORING_CONF)
    centre, size = boxes_xywh[cells, :2], boxes_xywh[cells, 2:]
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    candidates = scores[cells, class_ids]
    kept = nms(boxes, candidates, class_ids, SCORING_IOU, SCORING_MAX_DET)
    return Detections(geometry.to_source(boxes[kept]), candidates[kept], class_ids[kept])


def export_by_ultralytics(
    checkpoint: Path, export_format: str, data_yaml: Path, imgsz: int, folder: Path, precision: str = "int8"
) -> Path:
    """Export as a user of ultralytics would.

    Args:
        checkpoint: the weights; copied, for ultralytics writes beside them.
        export_format: one of `EXPORT_FORMATS`.
        data_yaml: its `val` entry names the calibration images: that split is what ultralytics calibrates on. Label
            caches are written beside the labels. Not looked at for FP32.
        imgsz: side of the input in pixels.
        folder: where to work; must exist.
        precision: "int8" or "fp32".

    Returns:
        The exported file or folder.

    Raises:
        BenchError: the exporter does not run here; the message holds its own.
    """
    from ultralytics import YOLO

    copy = folder / f"{export_format}-{checkpoint.name}"
    shutil.copyfile(checkpoint, copy)
    quantized = {"quantize": 8, "data": str(data_yaml)} if precision == "int8" else {}
    try:
        exported = YOLO(str(copy)).export(
            format=export_format, imgsz=imgsz, batch=1, device="cpu", verbose=False, **quantized
        )
    # Its exporters raise whatever the tools beneath them raise; what it was is told in the table.
    except Exception as error:
        raise BenchError(
            f"ultralytics' {export_format} {precision.upper()} export fails here: {type(error).__name__}: {error}"
        ) from error
    return Path(exported)


def calibration_as_val(data_yaml: Path, count: int, work: Path) -> Path:
    """A writable copy of the calibration images as the `val` split, which is what ultralytics calibrates on.

    Args:
        data_yaml: its `train` split calibrates.
        count: how many images at most, the same ones as `deploy` chooses.
        work: folder to write `calibration` and `calibration.yaml` into.

    Returns:
        The YAML file.
    """
    dataset = load_dataset(data_yaml, "train")
    copy_images(evenly_spaced(dataset.images, count), work / "calibration")
    return write_yaml(work / "calibration.yaml", work / "calibration", dataset.class_names)


def copy_images(images: Sequence[LabelledImage], folder: Path) -> None:
    """Copy images and their labels into `folder` in the YOLO layout; it must not hold any yet."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for image in images:
        shutil.copyfile(image.path, folder / "images" / image.path.name)
        rows = zip(image.class_ids, image.boxes_xywhn, strict=True)
        lines = [" ".join(map(str, (class_id, *box))) for class_id, box in rows]
        (folder / "labels" / f"{image.path.stem}.txt").write_text("\n".join(lines), encoding="utf-8")


def write_yaml(path: Path, root: Path, class_names: Sequence[str]) -> Path:
    """Write a data.yaml for `root`, whose `images` are both splits; returns `path`."""
    import yaml

    fields = {"path": str(root), "train": "images", "val": "images", "names": dict(enumerate(class_names))}
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


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
