"""Results kept as files, and the newest like runs taken as the baseline."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bench.compare import main
from bench.history import BASELINE_RUNS, keep
from bench.records import read_result
from bench.rows import result_row
from bench.run import main as run_main

from .conftest import BEFORE, Capture, MakeRun, compared, figure


def test_a_history_grows_run_by_run_and_its_newest_like_runs_are_the_baseline(run: MakeRun, capsys: Capture) -> None:
    run("today", 0)
    assert main(["today/run0", "--history", "history", "--gate"]) == 1
    assert "no like run in history: keep this one as the first with --record" in capsys.readouterr().out
    for seed in range(8):
        if seed:
            run("today", seed)
        found = compared(capsys, f"today/run{seed}", "--history", "history", "--gate", "--record")
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
    found = compared(capsys, "slow", "--history", "history", "--gate", "--record", code=1)
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


def test_two_real_runs_of_a_bundle_compare(tiny_bundle: Path, tiny_data: Path, tmp_path: Path, capsys: Capture) -> None:
    quick = ["--samples", "40", "--min-seconds", "0", "--threads", "1", "--data", str(tiny_data)]
    for name in ("a", "b"):
        assert run_main(["--bundle", str(tiny_bundle), *quick, "--out", str(tmp_path / name)]) == 0
    capsys.readouterr()
    sides = [str(tmp_path / "a"), str(tmp_path / "b")]
    found = compared(capsys, *sides, "--gate", "--max-latency-change", "900%", "--max-memory-change", "100%")
    assert found["passed"]
    accuracy = figure(found, "mAP50-95")
    assert (accuracy["change"], accuracy["low"], accuracy["high"]) == (0.0, 0.0, 0.0)
    assert figure(found, "p50")["baseline"] > 0
    assert run_main(["--bundle", str(tiny_bundle), *quick, "--images", "5", "--out", str(tmp_path / "c")]) == 0
    capsys.readouterr()
    assert main([sides[0], str(tmp_path / "c")]) == 1
    out = capsys.readouterr().out
    assert "unlike runs, data: " in out
    assert "6 images" in out
    assert "5 images" in out
