"""The whole path of the bench on an emulated Raspberry Pi: real arm64, real SSH. Only by `pytest -m pi`: minutes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import report
from bench.accuracy import ImageDetections
from bench.detections_file import read_detections
from bench.matching import pairwise_iou
from bench.records import Accuracy, Result, read_result
from deploy.bundle import ENGINES
from devices.emulated.image import find_image
from devices.emulated.machine import Machine, boot, shut_down
from devices.emulated.tools import TO_BOOT, default_cache, missing_packages

pytestmark = pytest.mark.pi

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = ["--samples", "3", "--min-seconds", "0", "--warmup", "1", "--threads", "1"]
PRECISIONS = ("fp32", "int8")
KINDS = [(engine, precision) for engine in ENGINES for precision in PRECISIONS]
CLEAR_SCORE = 0.1  # detections below it come and go with the last digit
# Seen with OpenVINO 2026.4: INT8 here, FP32 in all 63 convolutions there, as its own account in the result says. The
# images are few and the network is random: mAP is 4.4 points off, by detections of low scores that come and go.
COMPARED = [
    pytest.param(
        kind,
        marks=pytest.mark.xfail(strict=True, reason="OpenVINO runs quantized models in float on ARM")
        if kind == ("openvino", "int8")
        else (),
    )
    for kind in KINDS
]

Kind = tuple[str, str]


@dataclass(frozen=True)
class Likeness:
    """When two detections are the same: overlap, difference of their scores, and how many may have no counterpart."""

    iou: float = 0.99
    score: float = 0.001
    share_left: float = 0.0


# ncnn's INT8 kernels round otherwise on ARM: scores are up to 0.012 off, and NMS at times keeps another of two boxes.
LIKENESS = {("ncnn", "int8"): Likeness(0.95, 0.02, 0.02)}


@dataclass(frozen=True)
class Measured:
    """Result folders of one bundle, measured on both machines."""

    there: Path
    here: Path

    def results(self) -> tuple[Result, Result]:
        return read_result(self.there), read_result(self.here)


@pytest.fixture(scope="module")
def pi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A booted Raspberry Pi 5; skips where QEMU or the image is absent."""
    if packages := missing_packages(TO_BOOT):
        pytest.skip(f"no emulated Pi: apt-get install --no-install-recommends {' '.join(packages)}")
    image = find_image(default_cache(), "bookworm")
    if image is None:
        pytest.skip(f"no emulated Pi: no image in {default_cache()}: python -m devices.emulated build")
    machine = boot(tmp_path_factory.mktemp("emulated"), image, "pi", "pi5", 2)
    yield machine
    shut_down(machine)


@pytest.fixture(scope="module")
def measured(
    pi: Machine, bundles: Callable[[str, str], Path], deployed_student: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[Kind, Measured]:
    """Every bundle of the tiny student, measured by the command line on the Pi and on this machine."""
    made = {kind: bundles(*kind) for kind in KINDS}
    folder = tmp_path_factory.mktemp("measured")
    command = [sys.executable, str(REPOSITORY / "bench" / "run.py"), "--data", str(deployed_student.data_yaml), *QUICK]
    command += ["--bundle", *map(str, made.values())]
    for name, rest in (("pi", ["--inventory", str(pi.inventory)]), ("local", [])):
        argv = [*command, "--device", name, "--out", str(folder / name), *rest]
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return {
        kind: Measured(folder / "pi" / f"{path.name}@pi", folder / "local" / f"{path.name}@local")
        for kind, path in made.items()
    }


@pytest.mark.parametrize("kind", COMPARED, ids=" ".join)
def test_the_pi_detects_what_this_machine_detects(kind: Kind, measured: dict[Kind, Measured]) -> None:
    there, here = (read_detections(folder / "detections.npz").detections for folder in vars(measured[kind]).values())
    assert len(there) == len(here) == 6
    like = LIKENESS.get(kind, Likeness())
    left: list[str] = []
    for far, near in zip(there, here, strict=True):
        left += _without_counterpart(near, far, like) + _without_counterpart(far, near, like)
    clear = sum(int((one.scores >= CLEAR_SCORE).sum()) for one in (*there, *here))
    assert clear >= 200  # there was something to find
    assert len(left) <= like.share_left * clear, left


@pytest.mark.parametrize("kind", COMPARED, ids=" ".join)
def test_the_pi_scores_what_this_machine_scores(kind: Kind, measured: dict[Kind, Measured]) -> None:
    there, here = (result.accuracy for result in measured[kind].results())
    assert isinstance(there, Accuracy)
    assert isinstance(here, Accuracy)
    assert here.map50_95 > 0.2
    assert abs(there.map50_95 - here.map50_95) <= 0.003
    assert there.dataset_sha256 == here.dataset_sha256


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_memory_and_facts_of_the_pi_are_in_the_result(kind: Kind, measured: dict[Kind, Measured]) -> None:
    result, here = measured[kind].results()
    machine, before = result.machine, result.machine["before"]
    assert machine["emulated"] is True
    assert here.machine["emulated"] is False
    assert machine["model"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert (machine["processor"], machine["architecture"], machine["cores"]) == ("Cortex-A76", "aarch64", 2)
    assert "asimddp" in machine["cpu_flags"]
    assert 1.8e9 < machine["memory_bytes"] < 2.2e9
    assert (before["governor"], before["temperature_c"]) == ("ondemand", 48.312)
    assert before["throttled"] == {"raw": "0x0", "now": [], "occurred": []}
    assert 30e6 < result.peak_rss_bytes < 500e6
    assert (result.bundle["engine"], result.bundle["precision"]) == kind
    assert result.executed["library"]
    assert result.protocol["threads"] == 1


def test_the_result_says_that_openvino_ran_no_int8_there(measured: dict[Kind, Measured]) -> None:
    there, here = measured["openvino", "int8"].results()
    assert set(there.executed["audit"]["convolutions"]) == {"FP32"}
    assert here.executed["audit"]["convolutions"]["INT8"] > 50


def test_the_report_does_not_pass_it_for_a_pi(measured: dict[Kind, Measured], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert report.main([str(one.there) for one in measured.values()] + ["--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "pi (emulated): emulated, not a Pi&#x27;s time" in page
    assert "imitates Raspberry Pi 5" in page
    assert ">Raspberry Pi 5" not in page


def _without_counterpart(some: ImageDetections, others: ImageDetections, like: Likeness) -> list[str]:
    """What is clear among `some` and is not among `others` with about the same box and score."""
    left = []
    ious = pairwise_iou(np.asarray(some.boxes_xyxy, np.float64), np.asarray(others.boxes_xyxy, np.float64))
    for index in np.flatnonzero(some.scores >= CLEAR_SCORE):
        close = (
            (others.class_ids == some.class_ids[index])
            & (ious[index] >= like.iou)
            & (np.abs(others.scores - some.scores[index]) <= like.score)
        )
        if not close.any():
            left.append(f"class {some.class_ids[index]}, score {some.scores[index]:.3f}: {some.boxes_xyxy[index]}")
    return left
