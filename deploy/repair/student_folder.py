"""A repaired student as a student folder: an ordinary checkpoint that any target, and ultralytics, can read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy.bundle import sha256_file
from deploy.checkpoint import read_checkpoint
from deploy.errors import ExportError, StudentError
from deploy.graph import Graph, load_graph
from deploy.student import RECORD_NAME, REPAIR_RECORD, SCHEMA, Student

CHECKPOINT_NAME = "student.pt"
ORIGINAL_NAME = "original.pt"


def write_repaired_student(student: Student, repaired: Graph, record: Mapping[str, Any], folder: Path) -> None:
    """Write `student.pt`, `student.json` and the float student it came from into an empty folder.

    The original goes along because a bundle of the repaired student is verified against it: what counts is what was
    lost since the training.

    Args:
        student: the one that was repaired.
        repaired: its network, as `deploy.repair.repair` gives it.
        record: what the repair says of itself.
        folder: to write into.

    Raises:
        ExportError: the checkpoint read back does not hold the repaired weights.
    """
    checkpoint = folder / CHECKPOINT_NAME
    _save(student.checkpoint, repaired.network, checkpoint)
    original = original_checkpoint(student) or student.checkpoint
    shutil.copyfile(original, folder / ORIGINAL_NAME)
    fields = {
        **student.record,
        "schema": SCHEMA,
        "task": repaired.task,
        "student": {"file": CHECKPOINT_NAME, "sha256": sha256_file(checkpoint)},
        REPAIR_RECORD: {**record, "original": {"file": ORIGINAL_NAME, "sha256": sha256_file(original)}},
    }
    (folder / RECORD_NAME).write_text(json.dumps(fields, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def original_checkpoint(student: Student) -> Path | None:
    """The float student that a repaired one came from; None for one that was not repaired.

    Raises:
        StudentError: it is missing or was changed.
    """
    record = student.record.get(REPAIR_RECORD)
    if record is None:
        return None
    original = record.get("original") if isinstance(record, Mapping) else None
    if not isinstance(original, Mapping) or original.get("file") != ORIGINAL_NAME:
        raise StudentError(
            f"{student.checkpoint} is repaired, but its {RECORD_NAME} names no original: repair it again"
        )
    path = student.checkpoint.with_name(ORIGINAL_NAME)
    if not path.is_file():
        raise StudentError(f"{student.checkpoint} was repaired from {path.name}, which is not beside it: copy it too")
    if sha256_file(path) != original.get("sha256"):
        raise StudentError(f"{path} is not the student that {RECORD_NAME} names: copy the folder or repair it again")
    return path


def _save(source: Path, network: nn.Module, destination: Path) -> None:
    """The checkpoint `source` with the weights of `network` in place of its own.

    `network` has no BatchNorms any more, the layers of a checkpoint do: those become exact identities, so that fusing
    them again gives the same weights, and ultralytics can still open and train the network.
    """
    read = read_checkpoint(source)
    fused = read_checkpoint(source).model.fuse(verbose=False)
    repaired = _by_checkpoint_name(network, len(read.model.model) - 1)
    modules = dict(read.model.named_modules())
    with torch.no_grad():
        for name, _ in fused.named_parameters():
            if name in repaired:
                _set(modules, name, repaired[name])
    for parameter in read.model.parameters():
        parameter.requires_grad_(True)
    args = {} if read.trained_imgsz is None else {"imgsz": read.trained_imgsz}
    torch.save({"model": read.model, "ema": None, "train_args": args, "version": version("ultralytics")}, destination)
    _check(destination, network)


def _by_checkpoint_name(network: nn.Module, head: int) -> dict[str, torch.Tensor]:
    """Parameters by the names that they have in a fused checkpoint."""
    names = {"box_branches": "cv2", "class_branches": "cv3", "mask_branches": "cv4", "prototypes": "proto"}
    found: dict[str, torch.Tensor] = {}
    for name, parameter in network.named_parameters():
        first, rest = name.split(".", 1)
        if name.startswith("body.layers."):
            found[name.replace("body.layers.", "model.", 1)] = parameter
        else:
            found[f"model.{head}.{names.get(first, first)}.{rest}"] = parameter
    return found


def _set(modules: Mapping[str, nn.Module], name: str, value: torch.Tensor) -> None:
    """Put a fused parameter into the layer it belongs to, whose BatchNorm, if there is one, becomes an identity."""
    owner, kind = name.rsplit(".", 1)
    layer: Any = modules[owner]
    norm: Any = getattr(modules[owner.rsplit(".", 1)[0]], "bn", None) if owner.endswith(".conv") else None
    if norm is None:
        getattr(layer, kind).copy_(value)
    elif kind == "weight":
        layer.weight.copy_(value)
        norm.weight.fill_(1.0)
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0 - norm.eps)
    else:
        norm.bias.copy_(value)


def _check(checkpoint: Path, network: nn.Module) -> None:
    written = dict(load_graph(checkpoint).network.named_parameters())
    for name, parameter in network.named_parameters():
        if not torch.allclose(written[name], parameter, rtol=1e-5, atol=1e-7):
            raise ExportError(f"the checkpoint does not hold the repaired weights of {name}: use --repair of a target")
