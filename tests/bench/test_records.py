"""`result.json`: what is written is what is read, and nothing else is taken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.records import RESULT_NAME, Accuracy, Latency, Result, read_result
from bench.result_checks import check_kinds

RESULT = Result(
    bundle={"name": "größe", "sha256": "ab", "engine": "onnx", "imgsz": [64, 96], "size_bytes": 5, "student": {}},
    device="local",
    machine={"model": "Raspberry Pi 5", "before": {"temperature_c": 48.3, "throttled": None}},
    protocol={"threads": 2, "command": "python bench/run.py"},
    load_s=0.25,
    first_inference_s=0.0123456789012345,
    latency=Latency((0.001, 0.002), (0.010, 0.030), (0.0005, 0.0007)),
    peak_rss_bytes=58_000_000,
    created="2026-11-21T05:00:00+00:00",
    accuracy=Accuracy(0.4, 0.6, {"RBC": 0.5}, 87, "bccd/val", "cd"),
    executed={"library": "onnxruntime"},
    tools={"python": "3.11.7"},
)


MEASURED = replace(
    RESULT,
    memory={"before_load_bytes": 1, "after_load_bytes": None},
    cpu={"user_s": 0.04, "system_s": 0.02, "wall_s": 0.05},
    energy={"source": ["file"], "joules": 0.5, "meters": {"file": 0.5}},
    throughput={"streams": 2, "fps": 9.0},
)


@pytest.mark.parametrize("result", [RESULT, MEASURED, replace(RESULT, accuracy=None)])
def test_a_result_comes_back_as_it_was_written(tmp_path: Path, result: Result) -> None:
    (tmp_path / RESULT_NAME).write_text(result.to_json(), encoding="utf-8")
    assert read_result(tmp_path) == result
    assert read_result(tmp_path / RESULT_NAME) == result


def test_the_summary_follows_from_the_samples() -> None:
    summary = json.loads(RESULT.to_json())["summary"]
    assert summary["total_s"]["p50"] == pytest.approx((0.0115 + 0.0327) / 2)
    assert summary["inference_s"]["p90"] == pytest.approx(0.028)
    assert summary["fps"] == pytest.approx(2 / 0.0442)


def test_figures_per_image_are_of_the_timed_loop() -> None:
    assert (MEASURED.cpu_s_per_image, MEASURED.joules_per_image) == (pytest.approx(0.03), 0.25)
    assert (RESULT.cpu_s_per_image, RESULT.joules_per_image) == (None, None)
    assert json.loads(MEASURED.to_json())["summary"]["joules_per_image"] == 0.25


def test_a_result_of_an_older_schema_is_read(tmp_path: Path) -> None:
    fields = json.loads(RESULT.to_json())
    for name in ("memory", "cpu", "energy", "throughput"):
        del fields[name]
    (tmp_path / RESULT_NAME).write_text(json.dumps({**fields, "schema": 2}), encoding="utf-8")
    assert read_result(tmp_path) == replace(RESULT, schema=2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"energy": {"joules": "many"}}, "energy.joules is 'many'"),
        ({"energy": []}, "energy is []"),
        ({"cpu": {"user_s": 1.0}}, "cpu.system_s is None"),
        ({"memory": None}, "memory is None"),
        ({"throughput": {"fps": 3.0}}, "throughput.streams is None"),
        ({"machine": {"emulated": False, "during": [3]}}, "machine.during is 3"),
        ({"machine": {"emulated": False, "during": [{"throttled": "hot"}]}}, "machine.during.throttled is 'hot'"),
    ],
)
def test_figures_of_another_kind_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError) as raised:
        check_kinds(replace(MEASURED, **change))
    assert says in str(raised.value)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=50))
def test_percentiles_interpolate_between_neighbours(samples: list[float]) -> None:
    found = RESULT.latency.percentiles_s(samples)
    ordered = sorted(samples)
    for name, fraction in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        position = fraction * (len(ordered) - 1)
        low, rest = int(position), position - int(position)
        expected = ordered[low] + rest * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
        assert np.isclose(found[name], expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[:-20], "not valid JSON"),
        (lambda text: "[]", "schema 'list'"),
        (lambda text: text.replace('"schema": 3', '"schema": 4'), "schema 4, this version reads 1, 2, 3"),
        (lambda text: text.replace('"load_s"', '"lod_s"'), "incomplete"),
        (lambda text: text.replace('"inference_s": [\n   0.01', '"x": [\n   0.01'), "incomplete"),
        (lambda text: text.replace('"accuracy": {', '"accuracy": {"more": 1,'), "incomplete"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path: Path, change: object, says: str) -> None:
    assert callable(change)
    changed = change(RESULT.to_json())
    assert changed != RESULT.to_json()
    (tmp_path / RESULT_NAME).write_text(changed, encoding="utf-8")
    with pytest.raises(BenchError) as raised:
        read_result(tmp_path)
    assert says in str(raised.value)
    assert "run the bench again" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_result_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"no result\.json at .*: run python bench/run\.py"):
        read_result(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / RESULT_NAME).write_bytes(b"\xff\xfe{")
    with pytest.raises(BenchError, match="not UTF-8"):
        read_result(tmp_path)
