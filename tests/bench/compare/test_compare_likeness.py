"""Runs that cannot be compared are refused, with what differs."""

from __future__ import annotations

from typing import Any

import pytest

from bench.compare import main
from bench.compare_likeness import FIELDS
from bench.records import read_result

from .conftest import BEFORE, Capture, MakeRun, compared, make_result

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
    expected = [str(value(result)) for result in (make_result(1), read_result(changed))]
    for text in expected:
        text = "not recorded" if text == "None" else text
        words = text.replace("[", "").replace("]", "").replace(",", "").replace("'", "").replace("{", "").split()
        assert all(word.strip("}:") in line for word in words), (line, text)
    assert line.startswith(f"  refused: unlike runs, {field}: ")
    assert "refused: cells-onnx-int8" in err
    if field == "machine.emulated":  # the one that nothing allows
        return
    found = compared(capsys, "before", "after", "--allow", field, "--gate")
    assert found["comparisons"][0]["changes"]
    assert any(f"differs, {field}: " in remark for remark in found["comparisons"][0]["remarks"])
    if field.startswith("machine."):
        assert compared(capsys, "before", "after", "--allow", "machine")["comparisons"][0]["refused"] == []


def test_every_difference_is_told_at_once_and_memory_may_vary_a_little(run: MakeRun, capsys: Capture) -> None:
    run("before", 1)
    run("after", 2, protocol={"threads": 1, "warmup": 0}, machine={"cores": 2, "memory_bytes": 7_900_000_000})
    refused = compared(capsys, "before", "after", code=1)["comparisons"][0]["refused"]
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
        ({"during": [{"throttled": None}, {"throttled": {"now": ["throttled"], "occurred": []}}]}, "throttled"),
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
    found = compared(capsys, "before", "after", code=1)["comparisons"][0]
    assert found["changes"] == []
    expected = f"candidate cells-onnx-int8@pi5 was held back while it was measured ({says}): left out"
    assert found["refused"] == [expected]
    run("after", 3)  # one that was not held back is there too
    found = compared(capsys, "before", "after")["comparisons"][0]
    assert found["candidate_runs"] == 1
    assert expected in found["remarks"]


def test_throttling_before_the_run_is_no_reason(run: MakeRun, capsys: Capture) -> None:
    state = {**BEFORE, "throttled": THROTTLED}
    run("before", 1)
    run("after", 2, machine={"before": state, "after": state})
    assert compared(capsys, "before", "after")["comparisons"][0]["changes"]


def test_what_makes_times_doubtful_is_remarked(run: MakeRun, capsys: Capture) -> None:
    run("before", 1, machine={"emulated": True, "before": {**BEFORE, "load_average": [3.2, 1, 1]}})
    run("after", 2, machine={"emulated": True, "kernel": "6.18"}, bundle={"sha256": "c" * 64})
    remarks = compared(capsys, "before", "after")["comparisons"][0]["remarks"]
    assert "emulated: the times say nothing about a real device" in remarks
    assert "baseline: 1 of 1 runs began on a busy machine (load 3.2)" in remarks
    assert "differs, kernel: not recorded against 6.18" in remarks
    assert f"differs, bundle: cells-onnx-int8 ({'b' * 12}) against cells-onnx-int8 ({'c' * 12})" in remarks


def test_an_emulated_machine_is_never_held_against_a_real_one(run: MakeRun, capsys: Capture) -> None:
    run("before", 1)
    run("after", 2, machine={"emulated": True})
    for allowed in ([], ["--allow", "machine"]):
        refused = compared(capsys, "before", "after", *allowed, code=1)["comparisons"][0]["refused"]
        assert refused == ["unlike runs, machine.emulated: False against True"]
    with pytest.raises(SystemExit) as ended:
        main(["before", "after", "--allow", "machine.emulated"])
    assert ended.value.code == 2
    capsys.readouterr()
