"""The repeatability study: its slowdown is real, and its counts are those of the gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.compare_pair import Tolerances
from bench.records import Latency, Result, read_result
from bench.rows import Row, result_row
from bench.run import main as run_main
from bench.studies import slowed
from bench.studies.repeatability import main
from bench.studies.repeatability_gate import gate_rates

SPIN_S = 0.02
QUICK = ["--samples", "20", "--min-seconds", "0", "--threads", "1"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def turns(tiny_bundle: Path, tiny_data: Path, tmp_path: Path) -> Path:
    """A working folder with one real plain and one real slowed run, copied to three turns of slightly other times."""
    given = ["--bundle", str(tiny_bundle), "--data", str(tiny_data), *QUICK]
    work = tmp_path / "work"
    assert run_main([*given, "--out", str(work / "plain" / "run-00")]) == 0
    assert slowed.main([str(SPIN_S), *given, "--out", str(work / "slowed" / "run-00")]) == 0
    for side in ("plain", "slowed"):
        first = work / side / "run-00" / "tiny-onnx-fp32@local"
        for turn in (1, 2):
            folder = work / side / f"run-{turn:02d}" / first.name
            folder.mkdir(parents=True)
            (folder / "detections.npz").write_bytes((first / "detections.npz").read_bytes())
            text = _scaled(read_result(first), 1 + turn / 1000).to_json()
            (folder / "result.json").write_text(text, encoding="utf-8")
    return work


def _scaled(result: Result, factor: float) -> Result:
    latency = result.latency
    stages = (latency.preprocess_s, latency.inference_s, latency.postprocess_s)
    return replace(result, latency=Latency(*(tuple(factor * value for value in stage) for stage in stages)))


def test_every_image_of_a_slowed_run_waits_and_finds_the_same(turns: Path, tmp_path: Path, capsys: Capture) -> None:
    plain, slow = (read_result(turns / side / "run-00" / "tiny-onnx-fp32@local") for side in ("plain", "slowed"))
    assert min(slow.latency.preprocess_s) >= SPIN_S
    assert slow.accuracy == plain.accuracy
    capsys.readouterr()
    # The study takes up what is there, and writes its page.
    out = tmp_path / "page.md"
    command = ["--bundle", "unused", "--work", str(turns), "--runs", "3", "--out", str(out)]
    assert main(command) == 0
    page = out.read_text()
    assert "`tiny-onnx-fp32` (onnx, fp32, 64 px, 1 threads), 3 runs" in page
    assert "All runs made the same detections, to the last bit." in page
    assert "the gate says regressed, 0.3 points being tolerated" in page
    assert page.count("| slowed on purpose, --paired | 3 against 3 | 1 | 1 (100 %) | 0 (0 %) | 0 (0 %) |") == 2
    assert page.index("--statistic p50") < page.index("--statistic cpu")
    assert main(command) == 1
    assert f"{out} already exists" in capsys.readouterr().err
    assert main(["--bundle", "unused", "--work", str(turns), "--runs", "2"]) == 1
    assert "2 runs tell of no spread: give --runs 3 or more" in capsys.readouterr().err


def _rows(turns: Path, factors: list[float]) -> list[Row]:
    folder = turns / "plain" / "run-00" / "tiny-onnx-fp32@local"
    result = read_result(folder)
    steady = replace(result, latency=Latency((0.001,) * 40, (0.008,) * 40, (0.001,) * 40))
    return [result_row(_scaled(steady, factor), folder) for factor in factors]


def test_the_rates_count_what_the_gate_calls(turns: Path) -> None:
    random = np.random.default_rng(0)
    levels = np.exp(random.normal(0, 0.005, (2, 10)))
    rates = gate_rates(_rows(turns, levels[0].tolist()), _rows(turns, (1.2 * levels[1]).tolist()))
    by_name = {(rate.what, rate.runs): rate for rate in rates}
    assert by_name["equal: each against all others", "1 against 9"].comparisons == 10
    assert by_name["equal", "1 against 1"].comparisons == 90
    assert by_name["slowed on purpose", "1 against 1"].comparisons == 100
    assert all(rate.regressed == 0 for rate in rates if rate.what.startswith("equal"))
    assert all(rate.regressed == rate.comparisons for rate in rates if rate.what.startswith("slowed"))
    scaled = by_name["figures times 1.1", "5 against 5"]
    assert scaled.regressed == scaled.comparisons == 500


def test_processor_time_tells_a_slowdown_from_a_busy_machine(turns: Path) -> None:
    """Other programs on the cores make wall times differ by a third from run to run: a tenth hides in that."""
    random = np.random.default_rng(1)
    waits = np.exp(random.normal(0, 0.3, (2, 5))).tolist()
    plain, slow = (
        [
            replace(row, result=replace(row.result, cpu={"user_s": spent * 0.4, "system_s": 0.0, "wall_s": 1.0}))
            for row, spent in zip(_rows(turns, side), spends, strict=True)
        ]
        for side, spends in zip(
            waits, np.exp(random.normal([[0.0], [np.log(1.1)]], 0.01, (2, 5))).tolist(), strict=True
        )
    )
    rates = {name: gate_rates(plain, slow, Tolerances(statistic=name)) for name in ("p50", "cpu")}
    called = {(name, rate.what): rate.regressed for name in rates for rate in rates[name] if rate.runs == "5 against 5"}
    assert called["p50", "slowed on purpose"] == 0
    assert called["cpu", "slowed on purpose"] == 1
    assert all(rate.regressed == 0 for rate in rates["cpu"] if rate.what.startswith("equal"))


def test_runs_that_failed_are_one_line(tmp_path: Path, capsys: Capture) -> None:
    assert main(["--bundle", str(tmp_path / "none"), "--work", str(tmp_path / "work"), "--runs", "3"]) == 1
    err = capsys.readouterr().err
    assert "error: bench/run.py ended with exit code 1" in err
    assert "Traceback" not in err
