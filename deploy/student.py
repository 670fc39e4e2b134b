"""Finding a student: the newest below `runs/`, a folder that distill wrote, or a bare checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.bundle import sha256_file
from deploy.errors import StudentError

RECORD_NAME = "student.json"
SCHEMA = 1
REPAIR_RECORD = "repair"  # in a student's record and in a manifest's: what weight repair did


@dataclass(frozen=True)
class Student:
    """A checkpoint and what is known about it.

    Attributes:
        name: of its run folder, or the stem of a bare checkpoint.
        checkpoint: the `.pt` file, or the `.pt2` of a classifier.
        sha256: of the checkpoint.
        record: content of `student.json`; empty for a bare checkpoint.
    """

    name: str
    checkpoint: Path
    sha256: str
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data_yaml(self) -> Path | None:
        """The data set it was trained on, where known."""
        data = self.record.get("data") or {}
        return Path(data["yaml"]) if data.get("yaml") else None

    @property
    def data_root(self) -> Path | None:
        """The image-folder data set that a classifier was trained on, where known."""
        data = self.record.get("data") or {}
        return Path(data["root"]) if data.get("root") else None

    @property
    def data(self) -> Path | None:
        """Whichever of `data_yaml` and `data_root` is known."""
        return self.data_yaml or self.data_root

    @property
    def held_out_split(self) -> str | None:
        """The split of `data_root` that it was not trained on, where its record names it."""
        data = self.record.get("data") or {}
        return data.get("val")

    @property
    def imgsz(self) -> int | None:
        """Side in pixels of the images it was trained on, where its record says so."""
        imgsz = self.record.get("imgsz")
        return imgsz if isinstance(imgsz, int) else None

    def origin(self, parameters: int) -> dict[str, Any]:
        """What a manifest says of it; `parameters` are those of the deployed network."""
        teacher = self.record.get("teacher")
        named = ("file", "name", "sha256") if teacher and "name" in teacher else ("file", "sha256")
        return {
            "name": self.name,
            "file": self.checkpoint.name,
            "sha256": self.sha256,
            "parameters": parameters,
            "teacher": None if not teacher else {key: teacher.get(key) for key in named},
            "losses": self.record.get("losses"),
        }


def find_student(path: Path | None, runs: Path = Path("runs")) -> Student:
    """The student to deploy.

    Args:
        path: a student folder, the run folder around it, its `student.json`, or a `.pt`; None for the newest
            student below `runs`.
        runs: where runs are.

    Raises:
        StudentError: nothing there, an unreadable record, or a checkpoint that is not the one recorded.
    """
    if path is None:
        return _from_record(_newest_record(runs))
    if path.is_dir():
        for record in (path / RECORD_NAME, path / "student" / RECORD_NAME):
            if record.is_file():
                return _from_record(record)
        raise StudentError(f"{path} holds no {RECORD_NAME}: give a folder made by distill, or a .pt file")
    if path.name == RECORD_NAME and path.is_file():
        return _from_record(path)
    if not path.is_file():
        raise StudentError(f"no student {path}: give a .pt file, or a folder made by python -m distill.yolo")
    beside = path.parent / RECORD_NAME
    if beside.is_file() and _read_record(beside)["student"]["file"] == path.name:
        return _from_record(beside)
    if path.suffix == ".pt2":
        raise StudentError(
            f"{path} needs the {RECORD_NAME} beside it, which says what its input and classes are: "
            "give the whole folder that python -m distill.classify wrote"
        )
    return Student(path.stem, path, sha256_file(path))


def _newest_record(runs: Path) -> Path:
    # An assistant, in RUN/stages/, is a step on the way to a student: it is deployed only where it is named.
    records = [
        path
        for path in runs.rglob(RECORD_NAME)
        if not path.parent.name.startswith(".") and "stages" not in path.relative_to(runs).parts
    ]
    if not records:
        raise StudentError(f"no student below {runs}/: give --student, or make one with python -m distill.yolo")
    return max(records, key=lambda record: (record.stat().st_mtime_ns, str(record)))


def _from_record(record_path: Path) -> Student:
    record = _read_record(record_path)
    folder = record_path.resolve().parent
    checkpoint = record_path.parent / record["student"]["file"]
    if not checkpoint.is_file():
        raise StudentError(f"{record_path} names {checkpoint.name}, which is not beside it: copy the whole folder")
    sha256 = sha256_file(checkpoint)
    recorded = record["student"].get("sha256")
    if recorded and recorded != sha256:
        raise StudentError(
            f"{checkpoint} has SHA-256 {sha256[:12]}…, {RECORD_NAME} says {recorded[:12]}…: the file was changed, "
            "copy or distil it again"
        )
    name = folder.parent.name if folder.name == "student" else folder.name
    return Student(name, checkpoint, sha256, record)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StudentError(f"{path} is not valid JSON ({error}): distil the student again") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        met = record.get("schema") if isinstance(record, dict) else type(record).__name__
        raise StudentError(f"{path} has schema {met!r}, this version reads {SCHEMA}: distil the student again")
    student = record.get("student")
    if not isinstance(student, dict) or not isinstance(student.get("file"), str):
        raise StudentError(f"{path} names no student file: distil the student again")
    if Path(student["file"]).name != student["file"]:
        raise StudentError(f"{path} names the file {student['file']!r}, expected a plain file name beside it")
    _check_types(record, path)
    return record


def _check_types(record: Mapping[str, Any], path: Path) -> None:
    """Refuse a record whose optional fields are of another type than they are used as."""
    for name in ("data", "teacher"):
        if not isinstance(record.get(name), dict | None):
            raise StudentError(f"{path} has {name} {record[name]!r}, expected an object: distil the student again")
    data = record.get("data") or {}
    texts = {"student.sha256": record["student"].get("sha256")}
    texts |= {f"data.{name}": data.get(name) for name in ("yaml", "root", "val")}
    for name, value in texts.items():
        if not isinstance(value, str | None):
            raise StudentError(f"{path} has {name} {value!r}, expected a text: distil the student again")
