"""The gate: it calls what was made worse, passes what was not, and refuses what cannot be compared."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.accuracy import ImageDetections, ImageTruth, score
from bench.classes_file import write_classes
from bench.compare import main
from bench.compare_figures import log_ratio, verdict
from bench.compare_likeness import FIELDS
from bench.detections_file import write_detections
from bench.history import BASELINE_RUNS, keep
from bench.records import Accuracy, Latency, Result, TopAccuracy, read_result
from bench.rows import result_row
from bench.run import main as run_main
from bench.wire import TopClasses

stats = pytest.importorskip("scipy.stats", reason="scipy is the reference")

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


def _noisy_stages(random: np.random.Generator, count: int, slower: float, run_spread: float) -> Latency:
    """Stages of one run on a shared machine: a level of its own, images that differ, a load that comes and goes."""
    level = slower * math.exp(random.normal(0, run_spread))
    burst = np.zeros(count)
    for start in random.integers(0, count, random.poisson(3)):
        burst[start : start + random.integers(5, 20)] += random.uniform(0.2, 1.0)
    image = np.tile(np.linspace(0.9, 1.1, IMAGES), count // IMAGES + 1)[:count]
    total = 0.008 * level * (image + burst + np.abs(random.normal(0, 0.02, count)))
    return Latency(tuple((0.05 * total).tolist()), tuple((0.8 * total).tolist()), tuple((0.15 * total).tolist()))


def _result(seed: int = 0, slower: float = 1.0, run_spread: float = 0.02, count: int = 200, **changes: Any) -> Result:
    random = np.random.default_rng(seed)
    fields: dict[str, Any] = {
        "bundle": BUNDLE,
        "device": "pi5",
        "machine": MACHINE,
        "protocol": PROTOCOL,
        "load_s": 0.123,
        "first_inference_s": 0.031,
        "latency": _noisy_stages(random, count, slower, run_spread),
        "peak_rss_bytes": int(75e6 * math.exp(random.normal(0, 0.002))),
        "created": f"2026-11-21T05:{seed // 60 % 60:02d}:{seed % 60:02d}+00:00",
        "accuracy": Accuracy(0.4, 0.6, {"RBC": 0.5}, 87, "cells/val", "d" * 64),
        "executed": {"library": "onnxruntime", "version": "1.31.1"},
        "tools": {"python": "3.13.5", "numpy": "2.4.6", "pillow": "12.0.0"},
    }
    for name, change in changes.items():
        fields[name] = {**fields[name], **change} if isinstance(change, Mapping) else change
    return Result(**fields)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Writes one result into a folder of the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(side: str, seed: int = 0, **changes: Any) -> Path:
        result = _result(seed, **changes)
        folder = tmp_path / side / f"run{seed}" / f"{result.bundle['name']}@{result.device}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(result.to_json(), encoding="utf-8")
        return folder

    return write


def _compared(capsys: Capture, *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def _figure(found: dict[str, Any], name: str, index: int = 0) -> dict[str, Any]:
    return next(change for change in found["comparisons"][index]["changes"] if change["figure"] == name)


# What the gate is for


def test_ten_reruns_of_a_bundle_pass_on_a_noisy_machine(run: MakeRun, capsys: Capture) -> None:
    for seed in range(10):
        run("before", seed)
        run("after", 100 + seed)
    found = _compared(capsys, "before", "after", "--gate")
    assert found["passed"]
    change = _figure(found, "p50")
    assert change["low"] < 0 < change["high"]
    assert change["verdict"] == "within"
    assert 0.01 < change["spread"] < 0.04
    for seed in range(10):  # each alone against the others
        assert _compared(capsys, "--baseline", "before", f"after/run{100 + seed}", "--gate")["passed"]


@pytest.mark.parametrize("seed", [0, 1000, 2000])
def test_a_slowdown_of_ten_percent_is_called_on_a_noisy_machine(seed: int, run: MakeRun, capsys: Capture) -> None:
    for number in range(10):
        run("before", seed + number)
        run("after", seed + 500 + number, slower=1.1)
    found = _compared(capsys, "before", "after", "--gate", code=1)
    assert found["regressed"] == ["cells-onnx-int8"]
    change = _figure(found, "p50")
    assert change["verdict"] == "regressed"
    assert change["low"] > 0.05
    assert change["change"] == pytest.approx(0.1, abs=0.04)
    assert found["comparisons"][0]["rank_test_p"] < 0.01
    assert main(["before", "after"]) == 0  # told, but not gated
    assert "REGRESSED, tolerated 5 %" in capsys.readouterr().out
    assert main(["before", "after", "--gate", "--max-latency-change", "20%"]) == 0


def test_the_gate_rarely_errs_over_many_series_of_runs() -> None:
    """Five runs a side: unchanged bundles pass, and a slowdown well beyond the tolerance is called."""
    random = np.random.default_rng(0)
    false_alarms, caught = 0, 0
    for _ in range(1000):
        first, second = (np.exp(random.normal(0, 0.03, 5)) for _ in range(2))
        ratio = log_ratio(first, second, 0.0, 0.02)
        false_alarms += ratio.log - ratio.margin > math.log(1.05)
        ratio = log_ratio(first, 1.15 * second, 0.0, 0.02)
        caught += ratio.log - ratio.margin > math.log(1.05)
    assert false_alarms <= 2
    assert caught > 900


def test_one_run_a_side_says_that_it_cannot_tell(run: MakeRun, capsys: Capture) -> None:
    run("before", 1, run_spread=0)
    run("after", 2, run_spread=0, slower=1.13)
    found = _compared(capsys, "before", "after", "--gate")
    change = _figure(found, "p50")
    assert change["verdict"] == "unclear"
    assert change["detectable"] > 0.12
    assert main(["before", "after"]) == 0
    out = capsys.readouterr().out
    assert "unclear: only 1" in out
    assert "assumed, one run a side" in out
    # Known to be a quiet machine, it can.
    found = _compared(capsys, "before", "after", "--gate", "--run-spread", "0.2%", "--max-latency-change", "3", code=1)
    assert _figure(found, "p50")["verdict"] == "regressed"


@pytest.mark.parametrize(("loaded", "says"), [(0.0, "regressed"), (0.4, "unclear")])
def test_one_run_a_side_under_a_load_that_comes_and_goes_is_no_evidence(
    loaded: float, says: str, run: MakeRun, capsys: Capture
) -> None:
    random = np.random.default_rng(0)
    for side, seed, level in (("before", 1, 0.008), ("after", 2, 0.0104)):
        total = level * (1 + random.uniform(0, 0.01, 200) + loaded * (random.random(200) < 0.7))
        stages = (tuple((share * total).tolist()) for share in (0.1, 0.8, 0.1))
        run(side, seed, latency=Latency(*stages))
    change = _figure(_compared(capsys, "before", "after", "--gate", code=int(says == "regressed")), "p50")
    assert change["change"] == pytest.approx(0.3, abs=0.01)
    assert change["verdict"] == says
    assert change["spread"] == pytest.approx(0.34 if loaded else 0.02, abs=0.02)


def test_the_interval_of_a_ratio_is_students_where_nothing_is_assumed() -> None:
    """With many runs the assumption hardly counts, and the interval is that of scipy's test of two means."""
    random = np.random.default_rng(0)
    first, second = np.exp(random.normal(0, 0.03, 4000)), np.exp(random.normal(0.1, 0.03, 3000))
    expected = stats.ttest_ind(np.log(second), np.log(first)).confidence_interval(0.95)
    found = log_ratio(first, second, 0.0, 0.03)
    assert found.log - found.margin == pytest.approx(expected.low, abs=2e-6)
    assert found.log + found.margin == pytest.approx(expected.high, abs=2e-6)
    paired = stats.ttest_rel(np.log(second), np.log(first[:3000])).confidence_interval(0.95)
    found = log_ratio(first[:3000], second, 0.0, 0.03, paired=True)
    assert found.log - found.margin == pytest.approx(paired.low, abs=2e-6)
    alone = log_ratio([1.0], [1.1], 0.0, 0.02)
    assert alone.margin == pytest.approx(stats.t.ppf(0.975, 4) * 0.02 * math.sqrt(2), rel=1e-9)
    assert alone.log == pytest.approx(math.log(1.1), rel=1e-12)


def test_runs_in_turns_are_freed_of_what_drifts(run: MakeRun, capsys: Capture) -> None:
    for turn in range(8):
        run("before", 2 * turn, slower=1.05**turn, run_spread=0.002)
        run("after", 2 * turn + 1, slower=1.1 * 1.05**turn, run_spread=0.002)
    assert _compared(capsys, "before", "after", "--gate")["passed"]  # the drift hides it
    found = _compared(capsys, "before", "after", "--gate", "--paired", code=1)
    assert _figure(found, "p50")["change"] == pytest.approx(0.1, abs=0.01)
    shutil.rmtree("after/run1")
    assert main(["before", "after", "--paired"]) == 1
    assert "runs cannot be paired, 8 against 7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(0.06, 0.2, "regressed"), (0.04, 0.2, "unclear"), (-0.2, 0.05, "within"), (-0.2, -0.06, "improved")],
)
def test_a_verdict_needs_the_whole_interval(low: float, high: float, says: str) -> None:
    assert verdict(low, high, 0.05) == says


def test_memory_is_judged(run: MakeRun, capsys: Capture) -> None:
    for seed in range(3):
        run("before", seed)
        run("after", 10 + seed, peak_rss_bytes=82_500_000)
    found = _compared(capsys, "before", "after", "--gate", code=1)
    assert _figure(found, "peak RSS")["verdict"] == "regressed"
    assert _figure(found, "peak RSS")["change"] == pytest.approx(0.1, abs=0.005)
    assert _figure(found, "p50")["verdict"] != "regressed"
    assert _compared(capsys, "before", "after", "--gate", "--max-memory-change", "15%")["passed"]


def test_memory_of_a_compiled_and_of_a_cached_model_is_not_compared(run: MakeRun, capsys: Capture) -> None:
    run("before", 1, executed={"model_cache": "stored"}, peak_rss_bytes=90_000_000)
    run("after", 2, executed={"model_cache": "loaded"}, peak_rss_bytes=100_000_000)
    found = _compared(capsys, "before", "after", "--gate")
    assert _figure(found, "peak RSS")["verdict"] == "shown"
    assert "differs, model_cache: stored against loaded" in found["comparisons"][0]["remarks"]
    for seed in (3, 4):
        run("before", seed, executed={"model_cache": "loaded"}, peak_rss_bytes=80_000_000)
    change = _figure(_compared(capsys, "before", "after", "--gate", code=1), "peak RSS")
    assert change["baseline"] == pytest.approx(80.0)
    assert change["verdict"] == "regressed"


def test_other_statistics_can_be_judged_and_stages_are_shown(run: MakeRun, capsys: Capture) -> None:
    for seed in range(5):
        run("before", seed)
        run("after", 10 + seed, slower=1.3)
    found = _compared(capsys, "before", "after", "--statistic", "p10")
    assert _figure(found, "p10")["verdict"] == "regressed"
    assert _figure(found, "p50")["verdict"] == "shown"
    assert _figure(found, "inference p50")["change"] == pytest.approx(0.3, abs=0.06)
    first = read_result(next(Path("before").rglob("result.json")))
    assert min(first.latency.total_s()) * 1e3 < _figure(found, "p10")["baseline"] < _figure(found, "p90")["baseline"]


# Accuracy


def _scored(folder: Path, seed: int, dropped: int) -> float:
    """Give a result detections that find all but `dropped` of 400 objects; returns its mAP."""
    random = np.random.default_rng(0)
    truths, detections = [], []
    for image in range(100):
        corners = random.uniform(0, 200, (4, 2))
        boxes = np.concatenate([corners, corners + random.uniform(20, 80, (4, 2))], axis=1)
        class_ids = random.integers(0, 2, 4)
        shown = slice(1 if image < dropped else 0, None)
        moved = boxes + random.normal(0, 3, boxes.shape)
        truths.append(ImageTruth(boxes, class_ids))
        detections.append(ImageDetections(moved[shown], random.uniform(0.1, 1, 4)[shown], class_ids[shown]))
    write_detections(folder / "detections.npz", [f"{i}.jpg" for i in range(100)], detections, truths, ("RBC", "WBC"))
    found = score(detections, truths, 2).map50_95
    accuracy = Accuracy(found, 0.6, {}, 100, "cells/val", "d" * 64)
    (folder / "result.json").write_text(replace(_result(seed), accuracy=accuracy).to_json(), encoding="utf-8")
    return found


def test_a_lost_half_point_of_map_is_called_and_its_interval_is_the_paired_bootstraps(
    run: MakeRun, capsys: Capture
) -> None:
    before, after = run("before", 1), run("after", 2)
    whole, lost = _scored(before, 1, dropped=0), _scored(after, 2, dropped=3)
    assert 0.4 < 100 * (whole - lost) < 1.2
    found = _compared(capsys, "before", "after", "--gate", code=1)
    change = _figure(found, "mAP50-95")
    assert change["verdict"] == "regressed"
    assert change["change"] == pytest.approx(100 * (lost - whole), abs=1e-9)
    assert change["low"] < change["change"] < change["high"] <= 0.01
    limit = f"{100 * (whole - lost) + 0.01:.3f}"
    assert _compared(capsys, "before", "after", "--gate", "--max-map-drop", limit)["passed"]
    assert main(["before", "after"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "mAP50-95" in line)
    assert f"{100 * whole:.2f} -> {100 * lost:.2f} %" in line
    assert "REGRESSED, tolerated 0.3 points" in line


def test_equal_detections_leave_no_doubt_and_a_gain_is_none(run: MakeRun, capsys: Capture) -> None:
    before, after = run("before", 1), run("after", 2)
    _scored(before, 1, dropped=5)
    _scored(after, 2, dropped=5)
    change = _figure(_compared(capsys, "before", "after", "--gate"), "mAP50-95")
    assert (change["change"], change["low"], change["high"], change["verdict"]) == (0.0, 0.0, 0.0, "within")
    _scored(after, 2, dropped=0)
    assert _figure(_compared(capsys, "before", "after", "--gate"), "mAP50-95")["verdict"] == "improved"


def test_detections_of_another_run_are_refused_in_one_line(run: MakeRun, capsys: Capture) -> None:
    before, after = run("before", 1), run("after", 2)
    _scored(before, 1, dropped=0)
    _scored(after, 2, dropped=0)
    result = read_result(after)
    assert result.accuracy is not None
    wrong = replace(result, accuracy=replace(result.accuracy, map50_95=0.2))
    (after / "result.json").write_text(wrong.to_json(), encoding="utf-8")
    assert main(["before", "after"]) == 1
    assert "one belongs to another run" in capsys.readouterr().err


def test_a_classifiers_top_1_is_judged_image_by_image(run: MakeRun, capsys: Capture) -> None:
    random, truth = np.random.default_rng(0), np.arange(1000) % 10
    for side, seed, wrong in (("before", 1, range(0, 100)), ("after", 2, range(50, 155))):
        named = truth.copy()
        named[list(wrong)] = (named[list(wrong)] + 1) % 10
        top1 = 1 - len(wrong) / 1000
        accuracy = TopAccuracy(top1, 0.99, {}, 1000, "digits/test", "d" * 64)
        folder = run(side, seed, bundle={"task": "classify"}, accuracy=accuracy)
        found = [TopClasses(np.array([one]), random.random(1).astype(np.float32)) for one in named]
        write_classes(folder / "classes.npz", [f"{i}.png" for i in range(1000)], found, truth, list("abcdefghij"))
    change = _figure(_compared(capsys, "before", "after", "--gate", code=1), "top-1")
    assert change["change"] == pytest.approx(-0.5)
    assert change["verdict"] == "regressed"
    # 55 images lost and 50 gained of 1000: a standard deviation of sqrt(105)/10 points, or a little less.
    expected = 1.96 * math.sqrt(0.105 - 0.005**2) / math.sqrt(1000) * 100
    assert change["high"] - change["low"] == pytest.approx(2 * expected, rel=0.1)
    assert change["low"] < change["change"] < change["high"]


def test_recorded_figures_are_judged_where_detections_are_missing(run: MakeRun, capsys: Capture) -> None:
    run("before", 1)
    run("after", 2, accuracy=Accuracy(0.395, 0.6, {}, 87, "cells/val", "d" * 64))
    change = _figure(_compared(capsys, "before", "after", "--gate", code=1), "mAP50-95")
    assert change["change"] == pytest.approx(-0.5)
    assert (change["low"], change["verdict"]) == (None, "regressed")


def test_a_side_that_was_not_scored_is_unlike_and_has_no_accuracy(run: MakeRun, capsys: Capture) -> None:
    run("before", 1)
    run("after", 2, accuracy=None, protocol={"accuracy": None})
    assert main(["before", "after"]) == 1
    assert "refused: unlike runs, accuracy: conf=0.001 iou=0.7 against not recorded" in capsys.readouterr().out
    found = _compared(capsys, "before", "after", "--allow", "accuracy")
    assert [change["figure"] for change in found["comparisons"][0]["changes"]][:3] == ["p50", "peak RSS", "p90"]


# What is refused

UNLIKE: dict[str, dict[str, Any]] = {
    "task": {"bundle": {"task": "classify"}},
    "engine": {"bundle": {"engine": "tflite"}},
    "precision": {"bundle": {"precision": "fp32"}},
    "imgsz": {"bundle": {"imgsz": [640, 320]}},
    "library": {"executed": {"version": "1.30.0"}},
    "threads": {"protocol": {"threads": 1}},
    "data": {"protocol": {"data": {"name": "cells/val", "sha256": "e" * 64, "images": 87}}},
    "timed_images": {"protocol": {"timed_images": 3}},
    "warmup": {"protocol": {"warmup": 0}},
    "conf": {"protocol": {"conf": 0.1}},
    "iou": {"protocol": {"iou": 0.5}},
    "max_det": {"protocol": {"max_det": 100}},
    "top_k": {"protocol": {"top_k": 5}},
    "accuracy": {"protocol": {"accuracy": {"conf": 0.01, "iou": 0.7}}},
    "resizer": {"tools": {"opencv": "5.0.0"}},
    "machine.model": {"machine": {"model": "Raspberry Pi 4 Model B"}},
    "machine.processor": {"machine": {"processor": "Cortex-A72"}},
    "machine.architecture": {"machine": {"architecture": "armv7l"}},
    "machine.pointer_bits": {"machine": {"pointer_bits": 32}},
    "machine.cores": {"machine": {"cores": 2}},
    "machine.cpu_flags": {"machine": {"cpu_flags": ["asimd"]}},
    "machine.memory_bytes": {"machine": {"memory_bytes": 4_000_000_000}},
    "machine.page_bytes": {"machine": {"page_bytes": 4096}},
    "machine.max_frequency_hz": {"machine": {"before": {**BEFORE, "max_frequency_hz": 3_000_000_000}}},
    "machine.governor": {"machine": {"before": {**BEFORE, "governor": "performance"}}},
    "machine.emulated": {"machine": {"emulated": True}},
}


def test_every_field_has_a_way_to_differ() -> None:
    assert list(UNLIKE) == [field.name for field in FIELDS]


@pytest.mark.parametrize("field", UNLIKE)
def test_unlike_runs_are_refused_with_both_values_unless_allowed(field: str, run: MakeRun, capsys: Capture) -> None:
    run("before", 1)
    changed = run("after", 2, **UNLIKE[field])
    assert main(["before", "after"]) == 1
    out, err = capsys.readouterr()
    line = next(line for line in out.splitlines() if "unlike runs" in line)
    value = next(entry.value for entry in FIELDS if entry.name == field)
    expected = [str(value(result)) for result in (_result(1), read_result(changed))]
    for text in expected:
        text = "not recorded" if text == "None" else text
        words = text.replace("[", "").replace("]", "").replace(",", "").replace("'", "").replace("{", "").split()
        assert all(word.strip("}:") in line for word in words), (line, text)
    assert line.startswith(f"  refused: unlike runs, {field}: ")
    assert "refused: cells-onnx-int8" in err
    found = _compared(capsys, "before", "after", "--allow", field, "--gate")
    assert found["comparisons"][0]["changes"]
    assert any(f"differs, {field}: " in remark for remark in found["comparisons"][0]["remarks"])
    if field.startswith("machine."):
        assert _compared(capsys, "before", "after", "--allow", "machine")["comparisons"][0]["refused"] == []


def test_every_difference_is_told_at_once_and_memory_may_vary_a_little(run: MakeRun, capsys: Capture) -> None:
    run("before", 1)
    run("after", 2, protocol={"threads": 1, "warmup": 0}, machine={"cores": 2, "memory_bytes": 7_900_000_000})
    refused = _compared(capsys, "before", "after", code=1)["comparisons"][0]["refused"]
    assert refused == [
        "unlike runs, threads: 4 against 1",
        "unlike runs, warmup: 10 against 0",
        "unlike runs, machine.cores: 4 against 2",
    ]


def test_runs_of_one_side_must_be_alike_too(run: MakeRun, capsys: Capture) -> None:
    run("before", 1)
    run("before", 2, protocol={"threads": 2})
    run("after", 3)
    assert main(["before", "after"]) == 1
    assert "threads: 4 and 2 against 4" in capsys.readouterr().out


THROTTLED = {"raw": "0x50000", "now": [], "occurred": ["undervoltage", "throttled"]}


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ({"before": {**BEFORE, "throttled": {"now": ["undervoltage"], "occurred": []}}}, "undervoltage"),
        ({"after": {**BEFORE, "throttled": {"now": ["throttled"], "occurred": ["throttled"]}}}, "throttled"),
        (
            {
                "before": {**BEFORE, "throttled": {"raw": "0x0", "now": [], "occurred": []}},
                "after": {**BEFORE, "throttled": THROTTLED},
            },
            "undervoltage, throttled",
        ),
    ],
)
def test_a_run_that_throttled_is_not_compared_and_says_so(
    machine: dict[str, Any], says: str, run: MakeRun, capsys: Capture
) -> None:
    run("before", 1)
    run("after", 2, machine=machine)
    found = _compared(capsys, "before", "after", code=1)["comparisons"][0]
    assert found["changes"] == []
    expected = f"candidate cells-onnx-int8@pi5 was held back while it was measured ({says}): left out"
    assert found["refused"] == [expected]
    run("after", 3)  # one that was not held back is there too
    found = _compared(capsys, "before", "after")["comparisons"][0]
    assert found["candidate_runs"] == 1
    assert expected in found["remarks"]


def test_throttling_before_the_run_is_no_reason(run: MakeRun, capsys: Capture) -> None:
    state = {**BEFORE, "throttled": THROTTLED}
    run("before", 1)
    run("after", 2, machine={"before": state, "after": state})
    assert _compared(capsys, "before", "after")["comparisons"][0]["changes"]


def test_what_makes_times_doubtful_is_remarked(run: MakeRun, capsys: Capture) -> None:
    run("before", 1, machine={"emulated": True, "before": {**BEFORE, "load_average": [3.2, 1, 1]}})
    run("after", 2, machine={"emulated": True, "kernel": "6.18"}, bundle={"sha256": "c" * 64})
    remarks = _compared(capsys, "before", "after")["comparisons"][0]["remarks"]
    assert "emulated: the times say nothing about a real device" in remarks
    assert "baseline: 1 of 1 runs began on a busy machine (load 3.2)" in remarks
    assert "differs, kernel: not recorded against 6.18" in remarks
    assert f"differs, bundle: cells-onnx-int8 ({'b' * 12}) against cells-onnx-int8 ({'c' * 12})" in remarks


# What is compared with what


def test_bundles_are_paired_by_name_and_what_is_missing_fails_the_gate(run: MakeRun, capsys: Capture) -> None:
    for seed, name, precision in ((1, "a-fp32", "fp32"), (2, "a-int8", "int8"), (3, "b-int8", "int8")):
        run("before", seed, bundle={"name": name, "precision": precision})
    run("after", 4, bundle={"name": "b-int8"})
    run("after", 5, bundle={"name": "a-fp32", "precision": "fp32"})
    run("after", 6, bundle={"name": "a-fp16", "precision": "fp16"})
    found = _compared(capsys, "before", "after")
    assert [comparison["name"] for comparison in found["comparisons"]] == ["b-int8", "a-fp32"]
    assert (found["missing"], found["new"]) == (["a-int8"], ["a-fp16"])
    assert main(["before", "after", "--gate"]) == 1
    err = capsys.readouterr().err
    assert "measured for the baseline alone: a-int8" in err
    assert "measured for the candidate alone, nothing to compare with: a-fp16" in err


def test_a_renamed_bundle_is_found_by_engine_and_precision(run: MakeRun, capsys: Capture) -> None:
    for seed, engine in ((1, "onnx"), (2, "tflite")):
        run("before", seed, bundle={"name": f"old-{engine}", "engine": engine})
        run("after", 10 + seed, bundle={"name": f"new-{engine}", "engine": engine})
    found = _compared(capsys, "before", "after", "--gate")
    assert [comparison["name"] for comparison in found["comparisons"]] == ["new-onnx", "new-tflite"]


def test_devices_are_kept_apart_where_there_are_several(run: MakeRun, capsys: Capture) -> None:
    for seed, device in ((1, "pi4"), (2, "pi5")):
        run("before", seed, device=device)
        run("after", 10 + seed, device=device)
    names = [comparison["name"] for comparison in _compared(capsys, "before", "after")["comparisons"]]
    assert names == ["cells-onnx-int8 @ pi4", "cells-onnx-int8 @ pi5"]


def test_files_under_any_name_are_results_too(run: MakeRun, capsys: Capture) -> None:
    before, after = run("before", 1), run("after", 2)
    (before / "result.json").rename("baseline.json")
    found = _compared(capsys, "baseline.json", str(after / "result.json"))
    assert found["comparisons"][0]["baseline_runs"] == 1


def test_it_runs_by_its_path_from_anywhere(run: MakeRun, tmp_path: Path) -> None:
    run("before", 1)
    run("after", 2)
    script = Path(__file__).resolve().parents[2] / "bench" / "compare.py"
    done = subprocess.run(
        [sys.executable, str(script), "before", "after"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cells-onnx-int8: 1 against 1 run\n")
    assert done.stderr.endswith("next: python -m bench.report before after\n")


def test_several_baselines_are_taken_together(run: MakeRun, capsys: Capture) -> None:
    for seed in (1, 2, 3):
        run("before", seed)
    run("after", 4)
    baselines = [part for seed in (1, 2, 3) for part in ("--baseline", f"before/run{seed}")]
    assert _compared(capsys, *baselines, "after")["comparisons"][0]["baseline_runs"] == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["before", "before"], "is on both sides: name each result once"),
        (["before", "nowhere"], "no result.json in or below nowhere"),
        (["before", "empty.json"], "empty.json is not valid JSON"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, run: MakeRun, capsys: Capture) -> None:
    run("before", 1)
    Path("empty.json").write_text("")
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err


def _entries(fields: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    nested = [
        entry for key, value in fields.items() if isinstance(value, dict) for entry in _entries(value, (*path, key))
    ]
    return [*((*path, key) for key in fields), *nested]


def test_a_result_with_any_field_of_another_kind_gives_no_traceback(run: MakeRun, capsys: Capture) -> None:
    run("before", 1, count=20)
    changed = run("after", 2, count=20) / "result.json"
    whole = changed.read_text()
    entries = [path for path in _entries(json.loads(whole)) if path[0] != "summary"]
    random = np.random.default_rng(0)
    everything = [part for field in FIELDS for part in ("--allow", field.name)]
    for _ in range(60):
        fields = json.loads(whole)
        *parents, name = entries[random.integers(len(entries))]
        parent = fields
        for key in parents:
            parent = parent[key]
        odd = (None, 0, -1, "x", [], {}, [None], {"a": 1}, math.nan, math.inf, True)
        parent[name] = odd[random.integers(len(odd))]
        changed.write_text(json.dumps(fields))
        for arguments in (["before", "after", *everything], ["after", "--history", "before", "--json"]):
            assert main(arguments) in (0, 1)
            assert "Traceback" not in capsys.readouterr().err


def test_results_of_other_bundles_have_no_pair(run: MakeRun, capsys: Capture) -> None:
    run("before", 1, bundle={"name": "a", "engine": "onnx"})
    run("before", 2, bundle={"name": "b", "engine": "openvino"})
    run("after", 3, bundle={"name": "c", "engine": "tflite"})
    assert main(["before", "after"]) == 1
    assert "no bundle is on both sides: a, b against c" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["one"],
        ["a", "b", "c"],
        ["a", "b", "--record"],
        ["a", "--baseline", "b", "--history", "c"],
        ["a", "b", "--max-latency-change", "fast"],
        ["a", "b", "--max-latency-change", "-5%"],
        ["a", "b", "--max-map-drop", "nan"],
        ["a", "b", "--allow", "weather"],
    ],
)
def test_a_wrong_call_is_usage(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: python -m bench.compare" in capsys.readouterr().err


# History


def test_a_history_grows_run_by_run_and_its_newest_like_runs_are_the_baseline(run: MakeRun, capsys: Capture) -> None:
    run("today", 0)
    assert main(["today/run0", "--history", "history", "--gate"]) == 1
    assert "no like run in history: keep this one as the first with --record" in capsys.readouterr().out
    for seed in range(8):
        if seed:
            run("today", seed)
        found = _compared(capsys, f"today/run{seed}", "--history", "history", "--gate", "--record")
        assert found["passed"]
        assert found["comparisons"][0]["baseline_runs"] == min(seed, BASELINE_RUNS)
        assert len(found["recorded"]) == 1
    kept = sorted(path.parent.name for path in Path("history/cells-onnx-int8@pi5").rglob("result.json"))
    assert len(kept) == 8
    assert kept[0].startswith("20261121T050000-")
    assert read_result(Path(found["recorded"][0])) == read_result(Path("today/run7/cells-onnx-int8@pi5"))


def test_a_regressed_run_is_not_recorded(run: MakeRun, capsys: Capture) -> None:
    for seed in range(5):
        keep(Path("history"), [_row(run("today", seed, run_spread=0.003))])
    for seed in (5, 6, 7):
        run("slow", seed, slower=1.25, run_spread=0.003)
    found = _compared(capsys, "slow", "--history", "history", "--gate", "--record", code=1)
    assert found["regressed"] == ["cells-onnx-int8"]
    assert found["recorded"] == []
    assert len(list(Path("history").rglob("result.json"))) == 5


def test_a_history_leaves_out_what_is_unlike_held_back_broken_or_the_run_itself(run: MakeRun, capsys: Capture) -> None:
    now = run("today", 9)
    keep(Path("history"), [_row(now), _row(run("x", 1)), _row(run("x", 2, machine={"cores": 2}))])
    keep(Path("history"), [_row(run("x", 3, bundle={"name": "other"}))])
    hot = {"now": ["throttled"], "occurred": []}
    keep(Path("history"), [_row(run("x", 4, machine={"after": {**BEFORE, "throttled": hot}}))])
    Path("history/broken").mkdir()
    Path("history/broken/result.json").write_text("{}")
    Path("history/.half.partial-1").mkdir()
    Path("history/.half.partial-1/result.json").write_text("{")
    assert main(["today", "--history", "history", "--gate"]) == 0
    out, err = capsys.readouterr()
    assert "1 against 1 run\n" in out
    assert err.count("warning: left out: ") == 1
    assert "history/broken/result.json has schema None" in err
    shutil.rmtree(next(Path("history").glob("*/20261121T050001-*")))
    assert main(["today", "--history", "history"]) == 1
    said = capsys.readouterr().out
    assert "others differ in " in said
    assert "machine.cores (1)" in said
    assert "held back while it was measured (1)" in said


def _row(folder: Path) -> Any:
    return result_row(read_result(folder), folder)


# The whole way


def test_two_real_runs_of_a_bundle_compare(tiny_bundle: Path, tiny_data: Path, tmp_path: Path, capsys: Capture) -> None:
    quick = ["--samples", "40", "--min-seconds", "0", "--threads", "1", "--data", str(tiny_data)]
    for name in ("a", "b"):
        assert run_main(["--bundle", str(tiny_bundle), *quick, "--out", str(tmp_path / name)]) == 0
    capsys.readouterr()
    sides = [str(tmp_path / "a"), str(tmp_path / "b")]
    found = _compared(capsys, *sides, "--gate", "--max-latency-change", "900%", "--max-memory-change", "100%")
    assert found["passed"]
    accuracy = _figure(found, "mAP50-95")
    assert (accuracy["change"], accuracy["low"], accuracy["high"]) == (0.0, 0.0, 0.0)
    assert _figure(found, "p50")["baseline"] > 0
    assert run_main(["--bundle", str(tiny_bundle), *quick, "--images", "5", "--out", str(tmp_path / "c")]) == 0
    capsys.readouterr()
    assert main([sides[0], str(tmp_path / "c")]) == 1
    out = capsys.readouterr().out
    assert "unlike runs, data: " in out
    assert "6 images" in out
    assert "5 images" in out
