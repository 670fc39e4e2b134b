"""Results as a shared machine makes them, and the gate called on them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.compare import main
from bench.records import Accuracy, Latency, Result

Capture = pytest.CaptureFixture[str]
MakeRun = Callable[..., Path]
IMAGES = 8

BEFORE = {"governor": "ondemand", "max_frequency_hz": 2_400_000_000, "load_average": [0.1, 0.2, 0.3], "throttled": None}
MACHINE = {
    "model": "Raspberry Pi 5 Model B Rev 1.0",
    "processor": "Cortex-A76",
    "architecture": "aarch64",
    "pointer_bits": 64,
    "cores": 4,
    "cpu_flags": ["asimd", "asimddp"],
    "memory_bytes": 8_000_000_000,
    "page_bytes": 16384,
    "emulated": False,
    "before": BEFORE,
    "after": BEFORE,
}
PROTOCOL = {
    "threads": 4,
    "warmup": 10,
    "conf": 0.25,
    "iou": 0.7,
    "max_det": 300,
    "timed_images": IMAGES,
    "accuracy": {"conf": 0.001, "iou": 0.7},
    "data": {"name": "cells/val", "sha256": "d" * 64, "images": 87},
}
BUNDLE = {
    "name": "cells-onnx-int8",
    "sha256": "b" * 64,
    "engine": "onnx",
    "precision": "int8",
    "imgsz": [320, 320],
    "size_bytes": 3_301_234,
    "student": {"name": "cells"},
}


def noisy_stages(random: np.random.Generator, count: int, slower: float, run_spread: float) -> Latency:
    """Stages of one run on a shared machine: a level of its own, images that differ, a load that comes and goes."""
    level = slower * math.exp(random.normal(0, run_spread))
    burst = np.zeros(count)
    for start in random.integers(0, count, random.poisson(3)):
        burst[start : start + random.integers(5, 20)] += random.uniform(0.2, 1.0)
    image = np.tile(np.linspace(0.9, 1.1, IMAGES), count // IMAGES + 1)[:count]
    total = 0.008 * level * (image + burst + np.abs(random.normal(0, 0.02, count)))
    return Latency(tuple((0.05 * total).tolist()), tuple((0.8 * total).tolist()), tuple((0.15 * total).tolist()))


def make_result(
    seed: int = 0, slower: float = 1.0, run_spread: float = 0.02, count: int = 200, **changes: Any
) -> Result:
    random = np.random.default_rng(seed)
    fields: dict[str, Any] = {
        "bundle": BUNDLE,
        "device": "pi5",
        "machine": MACHINE,
        "protocol": PROTOCOL,
        "load_s": 0.123,
        "first_inference_s": 0.031,
        "latency": noisy_stages(random, count, slower, run_spread),
        "peak_rss_bytes": int(75e6 * math.exp(random.normal(0, 0.002))),
        "created": f"2026-11-21T05:{seed // 60 % 60:02d}:{seed % 60:02d}+00:00",
        "accuracy": Accuracy(0.4, 0.6, {"RBC": 0.5}, 87, "cells/val", "d" * 64),
        "executed": {"library": "onnxruntime", "version": "1.31.1"},
        "tools": {"python": "3.13.5", "numpy": "2.4.6", "pillow": "12.0.0"},
    }
    for name, change in changes.items():
        fields[name] = {**fields.get(name, {}), **change} if isinstance(change, Mapping) else change
    return Result(**fields)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Writes one result into a folder of the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(side: str, seed: int = 0, **changes: Any) -> Path:
        result = make_result(seed, **changes)
        folder = tmp_path / side / f"run{seed}" / f"{result.bundle['name']}@{result.device}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(result.to_json(), encoding="utf-8")
        return folder

    return write


def compared(capsys: Capture, *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def figure(found: dict[str, Any], name: str, index: int = 0) -> dict[str, Any]:
    return next(change for change in found["comparisons"][index]["changes"] if change["figure"] == name)
