"""The models of the runtime study: this project's bundles and ultralytics' exports, made once and kept in a folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.machine import machine_facts
from bench.studies.peers import calibration_as_val, export_by_ultralytics
from deploy.build import build_bundle
from deploy.bundle import Bundle
from deploy.cli import whole_folder
from deploy.steps import step
from deploy.student import Student

ENGINES = ("onnx", "openvino", "tflite")
PRECISIONS = ("fp32", "int8")
ENGINE_NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "tflite": "LiteRT"}

_EXPORT_FORMATS = {"onnx": "onnx", "openvino": "openvino", "tflite": "litert"}
_EXPORT_RECORD = "export.json"


@dataclass(frozen=True)
class Workshop:
    """Where models are kept, and what they are made from.

    Attributes:
        work: folder for `bundles` and `exports`; what it holds already is used if it stems from the same weights.
        student: the weights.
        data_yaml: its `train` split calibrates INT8, for both contenders alike.
        label: first part of the folders' names.
        calibration_images: at most.
    """

    work: Path
    student: Student
    data_yaml: Path
    label: str
    calibration_images: int

    def bundle(self, imgsz: int, engine: str, precision: str) -> Bundle:
        """This project's bundle.

        Raises:
            BenchError: the one kept was made from other weights.
            DeployError: it cannot be made.
        """
        folder = self.work / "bundles" / f"{self.label}-{imgsz}-{engine}-{precision}"
        if not folder.exists():
            build_bundle(
                import_module(f"deploy.{engine}").TARGET,
                self.student,
                folder,
                precision=precision,
                imgsz=imgsz,
                calibration=self.data_yaml,
                calibration_images=self.calibration_images,
                verify=False,
            )
        bundle = Bundle.open(folder)
        self._check(folder, bundle.manifest.student.get("sha256"))
        return bundle

    def export(self, imgsz: int, engine: str, precision: str) -> Path:
        """ultralytics' export for the same runtime: a file, or a folder for OpenVINO.

        Raises:
            BenchError: the exporter fails, or the one kept was made from other weights or by another version.
        """
        folder = self.work / "exports" / f"{self.label}-{imgsz}-{engine}-{precision}"
        if not folder.exists():
            with step(f"exporting {engine} {precision} {imgsz} px by ultralytics"), whole_folder(folder) as partial:
                self._export(partial, imgsz, engine, precision)
        record = _read_record(folder)
        self._check(folder, record["sha256"])
        if record["ultralytics"] != version("ultralytics"):
            raise BenchError(
                f"{folder} was exported by ultralytics {record['ultralytics']}, installed is "
                f"{version('ultralytics')}: remove it or choose another --work"
            )
        return folder / str(record["model"])

    def _export(self, folder: Path, imgsz: int, engine: str, precision: str) -> None:
        images = calibration_as_val(self.data_yaml, self.calibration_images, folder)
        exported = export_by_ultralytics(
            self.student.checkpoint, _EXPORT_FORMATS[engine], images, imgsz, folder, precision
        )
        shutil.rmtree(folder / "calibration")
        record = {
            "model": str(exported.resolve().relative_to(folder.resolve())),
            "sha256": self.student.sha256,
            "ultralytics": version("ultralytics"),
        }
        (folder / _EXPORT_RECORD).write_text(json.dumps(record), encoding="utf-8")

    def _check(self, folder: Path, sha256: object) -> None:
        if sha256 != self.student.sha256:
            raise BenchError(
                f"{folder} was made from weights {str(sha256)[:12]}, asked for are {self.student.sha256[:12]}: "
                "remove it or choose another --work"
            )


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / _EXPORT_RECORD).read_text(encoding="utf-8"))
        return {key: record[key] for key in ("model", "sha256", "ultralytics")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{folder} holds no readable {_EXPORT_RECORD} ({error}): remove it") from error


def has_bf16() -> bool:
    """Whether OpenVINO, left alone, runs what is float in bf16 on this processor."""
    return any(flag in machine_facts()["cpu_flags"] for flag in ("avx512_bf16", "amx_bf16"))
