"""The gate calls what was made slower or larger, and passes what was not."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench.compare import main
from bench.compare_figures import log_ratio, verdict
from bench.records import Latency, read_result

from .conftest import Capture, MakeRun, compared, figure

stats = pytest.importorskip("scipy.stats", reason="scipy is the reference")


def test_ten_reruns_of_a_bundle_pass_on_a_noisy_machine(run: MakeRun, capsys: Capture) -> None:
    for seed in range(10):
        run("before", seed)
        run("after", 100 + seed)
    found = compared(capsys, "before", "after", "--gate")
    assert found["passed"]
    change = figure(found, "p50")
    assert change["low"] < 0 < change["high"]
    assert change["verdict"] == "within"
    assert 0.01 < change["spread"] < 0.04
    for seed in range(10):  # each alone against the others
        assert compared(capsys, "--baseline", "before", f"after/run{100 + seed}", "--gate")["passed"]


@pytest.mark.parametrize("seed", [0, 1000, 2000])
def test_a_slowdown_of_ten_percent_is_called_on_a_noisy_machine(seed: int, run: MakeRun, capsys: Capture) -> None:
    for number in range(10):
        run("before", seed + number)
        run("after", seed + 500 + number, slower=1.1)
    found = compared(capsys, "before", "after", "--gate", code=1)
    assert found["regressed"] == ["cells-onnx-int8"]
    change = figure(found, "p50")
    assert change["verdict"] == "regressed"
    assert change["low"] > 0.05
    assert change["change"] == pytest.approx(0.1, abs=0.04)
    assert found["comparisons"][0]["rank_test_p"] < 0.01
    assert main(["before", "after"]) == 0  # told, but not gated
    assert "REGRESSED, tolerated 5 %" in capsys.readouterr().out
    assert main(["before", "after", "--gate", "--max-latency-change", "20%"]) == 0


def test_on_a_busy_machine_the_processor_time_is_judged(run: MakeRun, capsys: Capture) -> None:
    for seed in range(5):
        spent = 1.6 * (1 + 0.01 * seed)
        run("before", seed, run_spread=0.3, cpu={"user_s": spent, "system_s": 0.0, "wall_s": 9.0})
        run("after", 100 + seed, run_spread=0.3, cpu={"user_s": spent, "system_s": 0.1 * spent, "wall_s": 9.0})
    assert compared(capsys, "before", "after", "--gate")["passed"]  # by the median, which tells nothing there
    found = compared(capsys, "before", "after", "--gate", "--statistic", "cpu", code=1)
    change = figure(found, "cpu")
    assert change["change"] == pytest.approx(0.1)
    assert change["baseline"] == pytest.approx(8.0, rel=0.03)  # ms of each of 200 images
    assert change["verdict"] == "regressed"
    assert figure(found, "p50")["verdict"] == "shown"
    run("old", 1)
    assert main(["before", "old", "--gate", "--statistic", "cpu"]) == 1
    assert "has no processor time: run the bench again, or judge by another --statistic" in capsys.readouterr().err


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
    found = compared(capsys, "before", "after", "--gate")
    change = figure(found, "p50")
    assert change["verdict"] == "unclear"
    assert change["detectable"] > 0.12
    assert main(["before", "after"]) == 0
    out = capsys.readouterr().out
    assert "unclear: only 1" in out
    assert "assumed, one run a side" in out
    # Known to be a quiet machine, it can.
    found = compared(capsys, "before", "after", "--gate", "--run-spread", "0.2%", "--max-latency-change", "3", code=1)
    assert figure(found, "p50")["verdict"] == "regressed"


@pytest.mark.parametrize(("loaded", "says"), [(0.0, "regressed"), (0.4, "unclear")])
def test_one_run_a_side_under_a_load_that_comes_and_goes_is_no_evidence(
    loaded: float, says: str, run: MakeRun, capsys: Capture
) -> None:
    random = np.random.default_rng(0)
    for side, seed, level in (("before", 1, 0.008), ("after", 2, 0.0104)):
        total = level * (1 + random.uniform(0, 0.01, 200) + loaded * (random.random(200) < 0.7))
        stages = (tuple((share * total).tolist()) for share in (0.1, 0.8, 0.1))
        run(side, seed, latency=Latency(*stages))
    change = figure(compared(capsys, "before", "after", "--gate", code=int(says == "regressed")), "p50")
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
    assert compared(capsys, "before", "after", "--gate")["passed"]  # the drift hides it
    found = compared(capsys, "before", "after", "--gate", "--paired", code=1)
    assert figure(found, "p50")["change"] == pytest.approx(0.1, abs=0.01)
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
    found = compared(capsys, "before", "after", "--gate", code=1)
    assert figure(found, "peak RSS")["verdict"] == "regressed"
    assert figure(found, "peak RSS")["change"] == pytest.approx(0.1, abs=0.005)
    assert figure(found, "p50")["verdict"] != "regressed"
    assert compared(capsys, "before", "after", "--gate", "--max-memory-change", "15%")["passed"]


def test_memory_of_a_compiled_and_of_a_cached_model_is_not_compared(run: MakeRun, capsys: Capture) -> None:
    run("before", 1, executed={"model_cache": "stored"}, peak_rss_bytes=90_000_000)
    run("after", 2, executed={"model_cache": "loaded"}, peak_rss_bytes=100_000_000)
    found = compared(capsys, "before", "after", "--gate")
    assert figure(found, "peak RSS")["verdict"] == "shown"
    assert "differs, model_cache: stored against loaded" in found["comparisons"][0]["remarks"]
    for seed in (3, 4):
        run("before", seed, executed={"model_cache": "loaded"}, peak_rss_bytes=80_000_000)
    change = figure(compared(capsys, "before", "after", "--gate", code=1), "peak RSS")
    assert change["baseline"] == pytest.approx(80.0)
    assert change["verdict"] == "regressed"


def test_other_statistics_can_be_judged_and_stages_are_shown(run: MakeRun, capsys: Capture) -> None:
    for seed in range(5):
        run("before", seed)
        run("after", 10 + seed, slower=1.3)
    found = compared(capsys, "before", "after", "--statistic", "p10")
    assert figure(found, "p10")["verdict"] == "regressed"
    assert figure(found, "p50")["verdict"] == "shown"
    assert figure(found, "inference p50")["change"] == pytest.approx(0.3, abs=0.06)
    first = read_result(next(Path("before").rglob("result.json")))
    assert min(first.latency.total_s()) * 1e3 < figure(found, "p10")["baseline"] < figure(found, "p90")["baseline"]
