"""Models as others export them, from the same calibration images."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BenchError
from deploy.calibration import evenly_spaced
from deploy.dataset import LabelledImage, load_dataset

EXPORT_FORMATS = ("onnx", "openvino", "litert")


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
