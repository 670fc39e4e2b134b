"""Trained classifiers read back from disk: students of this tool, and ultralytics' ``-cls`` checkpoints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.classification.classifier import Classifier
from distill.classification.networks import build_classifier
from distill.classification.stage import read_tensors
from distill.errors import DistillError
from distill.teacher import file_sha256, load_weights

__all__ = ["is_trained", "load_classifier", "load_state"]


def is_trained(source: str) -> bool:
    """Whether a ``--teacher`` names files and not an architecture."""
    return Path(source).exists() or Path(source).suffix in {".pt", ".pt2", ".pth"} or "/" in source


def load_classifier(source: str, names: Sequence[str], *, height: int, width: int) -> tuple[Classifier, str]:
    """Load a trained classifier.

    Args:
        source: run folder, ``student/`` folder, ``student.pt2`` or ``weights.pt`` of this tool, or a ``.pt`` of
            ultralytics.
        names: class names of the data, in order.
        height: of the images, in pixels.
        width: of the images, in pixels.

    Returns:
        The classifier and the SHA-256 of the file its weights came from.

    Raises:
        DistillError: when it is missing, damaged, not of this tool, or of other classes or another size.
    """
    path = Path(source)
    if not path.exists():
        raise DistillError(f"teacher {source} does not exist: give a run folder, or an architecture to train first")
    described = next(
        (
            p
            for p in (path / "student" / "student.json", path / "student.json", path.parent / "student.json")
            if p.is_file()
        ),
        None,
    )
    if described is None:
        if path.suffix == ".pt":
            return _of_ultralytics(path, names, height, width)
        raise DistillError(
            f"teacher {source} has no student.json beside it: give a finished run of python -m distill.classify "
            "(--method none trains a teacher), or an ultralytics -cls .pt"
        )
    return _of_this_tool(described, names, height, width)


def load_state(classifier: Classifier, weights: Path) -> None:
    """Put a state dict of the same network into it.

    Raises:
        DistillError: when it is another network's.
    """
    try:
        classifier.network.load_state_dict(read_tensors(weights))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise DistillError(f"{weights} does not fit {classifier.name}: give the weights of that network") from error


def _of_this_tool(described: Path, names: Sequence[str], height: int, width: int) -> tuple[Classifier, str]:
    try:
        content: Any = json.loads(described.read_text("utf-8"))
        task, classes = content["task"], [str(name) for name in content["class_names"]]
        size = content["input"]["height"], content["input"]["width"]
        name, subclasses = content["student"]["init"], int(content["student"].get("subclasses", 1))
        sha256 = str(content["student"]["weights_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise DistillError(f"{described} is no description of a classifier ({error}): give another teacher") from error
    if task != "classify":
        raise DistillError(
            f"teacher {described.parent} is of task {task!r}, expected a classifier: give another teacher"
        )
    _check_names(classes, names, str(described.parent))
    if size != (height, width):
        raise DistillError(
            f"teacher {described.parent} was trained on {size[0]} x {size[1]} px, the run has {height} x {width}: "
            f"give --imgsz {size[0]}"
        )
    weights = described.with_name("weights.pt")
    if not weights.is_file() or file_sha256(weights) != sha256:
        raise DistillError(f"{weights} is missing or not the file that student.json describes: copy the folder again")
    classifier = build_classifier(
        Path(name).with_suffix(".yaml").name if Path(name).suffix == ".pt" else name,
        classes=len(names),
        height=height,
        width=width,
        subclasses=subclasses,
    )
    load_state(classifier, weights)
    return classifier, sha256


def _of_ultralytics(path: Path, names: Sequence[str], height: int, width: int) -> tuple[Classifier, str]:
    model: Any = load_weights(path, "teacher")
    head = type(model.model[-1]).__name__
    if head != "Classify":
        raise DistillError(f"teacher {path} has a {head} head, expected a classifier: give a -cls checkpoint")
    _check_names([str(model.names[k]) for k in sorted(model.names)], names, str(path))
    classifier = Classifier(model, str(path), height=height, width=width, mean=(0.0,) * 3, std=(1.0,) * 3)
    return classifier, file_sha256(path)


def _check_names(theirs: Sequence[str], ours: Sequence[str], teacher: str) -> None:
    advice = "train the teacher on this data first, or give the data it was trained on"
    if len(theirs) != len(ours):
        raise DistillError(f"teacher {teacher} knows {len(theirs)} classes, the data has {len(ours)}: {advice}")
    for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        if their != our:
            raise DistillError(f"class {index} is {their!r} for teacher {teacher} and {our!r} in the data: {advice}")
