"""What is compared with what, and what a wrong call is answered."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.compare import main
from bench.compare_likeness import field_names

from .conftest import Capture, MakeRun, compared


def test_bundles_are_paired_by_name_and_what_is_missing_fails_the_gate(run: MakeRun, capsys: Capture) -> None:
    for seed, name, precision in ((1, "a-fp32", "fp32"), (2, "a-int8", "int8"), (3, "b-int8", "int8")):
        run("before", seed, bundle={"name": name, "precision": precision})
    run("after", 4, bundle={"name": "b-int8"})
    run("after", 5, bundle={"name": "a-fp32", "precision": "fp32"})
    run("after", 6, bundle={"name": "a-fp16", "precision": "fp16"})
    found = compared(capsys, "before", "after")
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
    found = compared(capsys, "before", "after", "--gate")
    assert [comparison["name"] for comparison in found["comparisons"]] == ["new-onnx", "new-tflite"]


def test_devices_are_kept_apart_where_there_are_several(run: MakeRun, capsys: Capture) -> None:
    for seed, device in ((1, "pi4"), (2, "pi5")):
        run("before", seed, device=device)
        run("after", 10 + seed, device=device)
    names = [comparison["name"] for comparison in compared(capsys, "before", "after")["comparisons"]]
    assert names == ["cells-onnx-int8 @ pi4", "cells-onnx-int8 @ pi5"]


def test_files_under_any_name_are_results_too(run: MakeRun, capsys: Capture) -> None:
    before, after = run("before", 1), run("after", 2)
    (before / "result.json").rename("baseline.json")
    found = compared(capsys, "baseline.json", str(after / "result.json"))
    assert found["comparisons"][0]["baseline_runs"] == 1


def test_it_runs_by_its_path_from_anywhere(run: MakeRun, tmp_path: Path) -> None:
    run("before", 1)
    run("after", 2)
    script = Path(__file__).resolve().parents[3] / "bench" / "compare.py"
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
    assert compared(capsys, *baselines, "after")["comparisons"][0]["baseline_runs"] == 3


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
    everything = [part for name in field_names() for part in ("--allow", name)]
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
