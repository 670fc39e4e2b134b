"""Writes ``student/``: a plain ultralytics checkpoint and the JSON that says where it comes from."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
import ultralytics

from distill.data import DataSet
from distill.errors import DistillError
from distill.recipe import Recipe
from distill.teacher import file_sha256, load_weights

__all__ = ["publish_student"]

_SCHEMA: Final = 1
_STUDENT_FILE: Final = "student.pt"
#: What the checkpoint needs to load, predict, validate and be trained further; the rest tells of a machine.
_KEPT: Final = ("epoch", "model", "train_args", "train_metrics", "date", "version", "license", "docs")
_LOCAL_ARGS: Final = ("project", "name", "save_dir", "resume")


def publish_student(best: Path, out: Path, *, recipe: Recipe, data: DataSet, metrics: Mapping[str, float]) -> Path:
    """Write ``out/student``, whole or not at all.

    Args:
        best: ultralytics' ``best.pt``, optimizer already stripped.
        out: the run folder.
        recipe: what was asked.
        data: the data set trained and validated on.
        metrics: ``map50_95`` and ``map50`` of ultralytics' final validation, 0 to 1.

    Returns:
        Path of ``student.json``.
    """
    final, partial = out / "student", out / f".student.partial-{os.getpid()}"
    partial.mkdir()
    try:
        head = _write_checkpoint(best, partial / _STUDENT_FILE)
        description = _describe(partial / _STUDENT_FILE, head, recipe, data, metrics)
        (partial / "student.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final / "student.json"


def _write_checkpoint(best: Path, path: Path) -> dict[str, Any]:
    """Copy the model and its settings without paths of this machine; return facts of its head."""
    checkpoint = torch.load(best, map_location="cpu", weights_only=False)  # written by this very run
    model = checkpoint.get("model") or checkpoint.get("ema")
    if model is None:
        raise DistillError(f"{best} holds no model: the training did not complete; continue it with --resume")
    slim = {key: checkpoint.get(key) for key in _KEPT}
    slim["train_args"] = {k: v for k, v in checkpoint["train_args"].items() if k not in _LOCAL_ARGS}
    slim["train_metrics"] = {k: float(v) for k, v in checkpoint["train_metrics"].items() if "kd_" not in k}
    model.args = {k: v for k, v in dict(model.args).items() if k not in _LOCAL_ARGS}
    torch.save(slim, path)
    head = model.model[-1]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "strides": [int(s) for s in head.stride],
        "reg_max": int(head.reg_max),
    }


def _describe(
    student: Path, head: Mapping[str, Any], recipe: Recipe, data: DataSet, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """The contents of ``student.json``, which deploy and bench read."""
    teachers = [_describe_teacher(Path(teacher.path), teacher.sha256) for teacher in recipe.teachers]
    return {
        "schema": _SCHEMA,
        "task": recipe.task,
        "student": {
            "file": student.name,
            "sha256": file_sha256(student),
            "init": recipe.student,
            "parameters": head["parameters"],
        },
        "teacher": _as_one(teachers),
        "teachers": [{k: v for k, v in teacher.items() if k != "chain"} for teacher in teachers],
        "chain": teachers[0].get("chain", []) if len(teachers) == 1 else [],
        "peers": list(recipe.peers),
        "data": {"yaml": str(data.yaml), "train_sha256": data.train_sha256, "val_sha256": data.val_sha256},
        "imgsz": recipe.imgsz,
        "class_names": list(data.names),
        "strides": head["strides"],
        "reg_max": head["reg_max"],
        "losses": dict(recipe.losses),
        "combine": recipe.combine,
        "temperature": recipe.temperature,
        "settings": dict(recipe.settings),
        "epochs": recipe.epochs,
        "batch": recipe.batch,
        "seed": recipe.seed,
        "metrics": dict(metrics),
        "tools": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ultralytics": ultralytics.__version__,
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def _describe_teacher(path: Path, sha256: str) -> dict[str, Any]:
    """A teacher; one that was distilled itself has a name that says by whom."""
    model = load_weights(path, "teacher")
    described = {"file": path.name, "sha256": sha256, "parameters": sum(p.numel() for p in model.parameters())}
    taught = _own_record(path, sha256)
    if not taught:
        return described
    own = Path(taught["student"]["init"]).stem
    above = taught.get("teacher")
    name = f"{above.get('name') or above['file']} > {own}" if above else own
    chain = [*taught.get("chain", ()), {"name": own, "sha256": sha256, "metrics": taught["metrics"]}]
    return {"name": name, **described, "chain": chain}


def _own_record(path: Path, sha256: str) -> dict[str, Any] | None:
    """The ``student.json`` beside a teacher that was a student; None where there is none of that very file."""
    beside = path.parent / "student.json"
    if path.name != _STUDENT_FILE or not beside.is_file():
        return None
    record: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
    return record if record["student"]["sha256"] == sha256 else None


def _as_one(teachers: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The teacher as manifests and reports name it: several have a name of all and no one file."""
    if len(teachers) < 2:
        return {k: v for k, v in teachers[0].items() if k != "chain"} if teachers else None
    return {
        "name": " + ".join(teacher.get("name") or teacher["file"] for teacher in teachers),
        "file": None,
        "sha256": None,
        "parameters": sum(teacher["parameters"] for teacher in teachers),
    }
