"""Shared fixtures: where the real data and weights are, and a quiet, offline ultralytics."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before ultralytics is imported anywhere: it must neither install packages nor write into the user's settings.
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_OFFLINE", "true")

REPOSITORY = Path(__file__).resolve().parent.parent


def edge_data() -> Path:
    """Folder with real data and weights: $EDGE_DATA, or `shared` beside the checkout."""
    return Path(os.environ.get("EDGE_DATA", REPOSITORY.parent / "shared")).resolve()


def _need(relative: str) -> Path:
    path = edge_data() / relative
    if not path.exists():
        pytest.skip(f"real data is absent: {path} does not exist (set EDGE_DATA)")
    return path


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """Folder of the COCO sample, with coco-mini.yaml."""
    return _need("data/coco-mini")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """Folder of the blood-cell data set, with bccd.yaml."""
    return _need("data/bccd")


@pytest.fixture(scope="session")
def coco_weights() -> Path:
    """A COCO-trained YOLOv8-n checkpoint."""
    return _need("weights/yolov8n-coco.pt")
