"""What the worker says the engine executed, kept in the result and shown; and an audit in a process of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import audit, run
from bench.columns import json_row, text_table
from bench.errors import BenchError
from bench.records import Result, read_result
from bench.report_notes import result_notes
from bench.reported import checked_audit
from bench.rows import result_row

pytest.importorskip("onnxruntime")

QUICK = ["--samples", "3", "--min-seconds", "0", "--warmup", "0", "--threads", "1", "--no-accuracy"]


@pytest.fixture
def result(tiny_bundle: Path, tiny_data: Path, tmp_path: Path) -> Result:
    """A result of the tiny bundle, just measured here."""
    out = tmp_path / "out"
    assert run.main(["--bundle", str(tiny_bundle), "--data", str(tiny_data), "--out", str(out), *QUICK]) == 0
    (file,) = out.rglob("result.json")
    return read_result(file)


def _with_audit(result: Result, **fields: object) -> Result:
    audited = {**result.executed["audit"], **fields}
    return replace(result, executed={**result.executed, "audit": audited})


def test_a_result_says_what_the_engine_executed(result: Result) -> None:
    audited = result.executed["audit"]
    assert audited["passed"] is True
    assert audited["convolutions"] == {"FP32": 6}
    assert audited["verdict"] == "executed as FP32: 6 of 6 convolutions, 100.0 % of the multiplications"
    assert "operators" not in audited  # a result stays small


def test_the_table_has_a_column_of_what_was_executed(result: Result) -> None:
    row = result_row(result, Path("out"))
    assert json_row(row)["executed"] == "FP32 6/6"
    heading, line = text_table([row]).splitlines()
    place = heading.index("executed")
    assert line[place:].startswith("FP32 6/6")


def test_a_result_from_before_there_were_audits_is_shown_without_the_column(result: Result) -> None:
    older = replace(result, executed={name: one for name, one in result.executed.items() if name != "audit"})
    row = result_row(older, Path("out"))
    assert row.executed is None
    assert "executed" not in text_table([row])
    assert "executed" in text_table([row, result_row(result, Path("out"))])


def test_a_bundle_that_falls_back_is_noted_in_the_report(result: Result) -> None:
    verdict = "FALLS BACK, int8 is claimed; executed as INT8: 0 of 6 convolutions"
    row = result_row(_with_audit(result, passed=False, verdict=verdict), Path("out"))
    assert f"one: {verdict}." in result_notes([row], ["one"])
    unknown = replace(result, executed={**result.executed, "audit": {"error": "abacus does not tell"}})
    row = result_row(unknown, Path("out"))
    assert row.executed is None
    assert "one: what was executed is not known: abacus does not tell." in result_notes([row], ["one"])


@pytest.mark.parametrize("broken", [["FP32"], 7, {"convolutions": [1]}, {"convolutions": {"FP32": "many"}}])
def test_a_result_with_a_broken_audit_is_refused(broken: object, result: Result) -> None:
    with pytest.raises(BenchError, match="is incomplete"):
        result_row(replace(result, executed={"audit": broken}), Path("out"))


@pytest.mark.parametrize("broken", [None, [], {}, {"passed": 1}, {"passed": True, "verdict": "fine"}])
def test_a_worker_whose_audit_is_none_is_refused_in_one_line(broken: object) -> None:
    with pytest.raises(BenchError, match=r"^the worker's audit is .*: run the bench again$"):
        checked_audit(broken)


def test_an_audit_in_a_process_of_its_own_prints_the_same_verdict(tiny_bundle: Path, capsys) -> None:
    assert audit.main([str(tiny_bundle), "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny-onnx-fp32: onnxruntime ")
    assert lines[-1] == "executed as FP32: 6 of 6 convolutions, 100.0 % of the multiplications"


def test_an_audit_in_a_process_of_its_own_ends_with_1_where_a_bundle_falls_back(
    make_bundle, tmp_path: Path, capsys
) -> None:
    bundle = make_bundle(tmp_path / "liar", precision="int8")
    assert audit.main([str(bundle), "--threads", "1", "--json"]) == 1
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert (record["passed"], record["convolutions"], len(record["operators"]) > 6) == (False, {"FP32": 6}, True)
    assert printed.err.splitlines()[-1] == "error: 1 of 1 bundles do not run as they claim: liar"
