"""The gate on accuracy: recorded figures judged as they stand, with an interval over the images."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.accuracy import ImageDetections, ImageTruth, score
from bench.classes_file import write_classes
from bench.compare import main
from bench.detections_file import write_detections
from bench.records import Accuracy, TopAccuracy, read_result
from bench.wire import TopClasses

from .conftest import Capture, MakeRun, compared, figure, make_result


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
    (folder / "result.json").write_text(replace(make_result(seed), accuracy=accuracy).to_json(), encoding="utf-8")
    return found


def test_a_lost_half_point_of_map_is_called_and_its_interval_is_the_paired_bootstraps(
    run: MakeRun, capsys: Capture
) -> None:
    before, after = run("before", 1), run("after", 2)
    whole, lost = _scored(before, 1, dropped=0), _scored(after, 2, dropped=3)
    assert 0.4 < 100 * (whole - lost) < 1.2
    found = compared(capsys, "before", "after", "--gate", code=1)
    change = figure(found, "mAP50-95")
    assert change["verdict"] == "regressed"
    assert change["change"] == pytest.approx(100 * (lost - whole), abs=1e-9)
    assert change["low"] < change["change"] < change["high"] <= 0.01
    limit = f"{100 * (whole - lost) + 0.01:.3f}"
    assert compared(capsys, "before", "after", "--gate", "--max-map-drop", limit)["passed"]
    assert main(["before", "after"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "mAP50-95" in line)
    assert f"{100 * whole:.2f} -> {100 * lost:.2f} %" in line
    assert "REGRESSED, tolerated 0.3 points" in line


def test_equal_detections_leave_no_doubt_and_a_gain_is_none(run: MakeRun, capsys: Capture) -> None:
    before, after = run("before", 1), run("after", 2)
    _scored(before, 1, dropped=5)
    _scored(after, 2, dropped=5)
    change = figure(compared(capsys, "before", "after", "--gate"), "mAP50-95")
    assert (change["change"], change["low"], change["high"], change["verdict"]) == (0.0, 0.0, 0.0, "within")
    _scored(after, 2, dropped=0)
    assert figure(compared(capsys, "before", "after", "--gate"), "mAP50-95")["verdict"] == "improved"


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
    change = figure(compared(capsys, "before", "after", "--gate", code=1), "top-1")
    assert change["change"] == pytest.approx(-0.5)
    assert change["verdict"] == "regressed"
    # 55 images lost and 50 gained of 1000: a standard deviation of sqrt(105)/10 points, or a little less.
    expected = 1.96 * math.sqrt(0.105 - 0.005**2) / math.sqrt(1000) * 100
    assert change["high"] - change["low"] == pytest.approx(2 * expected, rel=0.1)
    assert change["low"] < change["change"] < change["high"]


def test_recorded_figures_are_judged_where_detections_are_missing(run: MakeRun, capsys: Capture) -> None:
    run("before", 1)
    run("after", 2, accuracy=Accuracy(0.395, 0.6, {}, 87, "cells/val", "d" * 64))
    change = figure(compared(capsys, "before", "after", "--gate", code=1), "mAP50-95")
    assert change["change"] == pytest.approx(-0.5)
    assert (change["low"], change["verdict"]) == (None, "regressed")


def test_a_side_that_was_not_scored_is_unlike_and_has_no_accuracy(run: MakeRun, capsys: Capture) -> None:
    run("before", 1)
    run("after", 2, accuracy=None, protocol={"accuracy": None})
    assert main(["before", "after"]) == 1
    assert "refused: unlike runs, accuracy: conf=0.001 iou=0.7 against not recorded" in capsys.readouterr().out
    found = compared(capsys, "before", "after", "--allow", "accuracy")
    assert [change["figure"] for change in found["comparisons"][0]["changes"]][:3] == ["p50", "peak RSS", "p90"]
