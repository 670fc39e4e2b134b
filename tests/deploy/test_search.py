"""The search for a precision mix: the bad block stays in float, budgets hold, and the front falls."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("ultralytics", reason="deploying needs the [train] extra")
pytest.importorskip("onnxruntime", reason="the search builds for ONNX Runtime here")

import torch

from deploy.bundle import Bundle
from deploy.graph import load_graph
from deploy.search.__main__ import main
from deploy.search.latency import time_bundles
from deploy.search.plan import Plan, make_plan
from deploy.search.search import PLAIN, Budget, Candidate, pareto, within
from deploy.sensitivity import Probe

OUTLIER, BAD = 300.0, "model.22.cv3.0"


@pytest.fixture(scope="module")
def spoiled_run(deployed_student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student with one channel in its finest class branch that leaves its neighbours no steps of 8 bits."""
    run = tmp_path_factory.mktemp("spoiled") / "spoiled"
    shutil.copytree(deployed_student.run, run)
    file = run / "student" / "student.pt"
    checkpoint = torch.load(file, weights_only=False)
    branch = checkpoint["model"].model[22].cv3[0]
    with torch.no_grad():
        branch[0].bn.weight[0] *= OUTLIER
        branch[0].bn.bias[0] *= OUTLIER
        branch[1].conv.weight[:, 0] /= OUTLIER
    torch.save(checkpoint, file)
    record = json.loads((run / "student" / "student.json").read_text())
    record["student"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (run / "student" / "student.json").write_text(json.dumps(record))
    return run


def _candidate(name: str, ratio: float, damage: float, latency_s: float | None = None) -> Candidate:
    return Candidate("onnx", name, (), damage, ratio * 0.010 if latency_s is None else latency_s, ratio, 0.0, 1)


def test_the_plan_spends_its_first_work_on_the_bad_block(spoiled_run, deployed_student) -> None:
    images = sorted((deployed_student.data_yaml.parent / "images/train").iterdir())[:2]
    plan = make_plan(Probe(load_graph(spoiled_run / "student/student.pt"), images, 64))
    assert sum(plan.shares.values()) == pytest.approx(1)
    assert BAD in plan.best(1.5 * plan.shares[BAD])
    assert plan.relief(frozenset({BAD})) > 0.5 * plan.relief(frozenset(plan.shares))


def test_a_plan_stays_within_its_work_and_wins_more_with_more() -> None:
    blocks = {"a": 0.5, "b": 0.1, "c": 0.1, "d": 0.3}
    neighbours = {frozenset("a"): 9.0, frozenset("b"): 1.0, frozenset("c"): 0.5, frozenset("bc"): 8.0}
    plan = Plan(blocks, neighbours)
    assert plan.best(0.0) == frozenset()
    assert plan.best(0.1) == {"b"}
    assert plan.best(0.2) == {"b", "c"}  # together they win what neither does alone
    assert plan.best(1.0) == {"a", "b", "c"}  # d wins nothing
    reliefs = [plan.relief(plan.best(work / 10)) for work in range(11)]
    assert reliefs == sorted(reliefs)
    assert all(plan.work(plan.best(work / 10)) <= work / 10 + 1e-9 for work in range(11))


def test_the_front_is_faster_to_slower_and_falls() -> None:
    found = [_candidate("a", 1.0, 9), _candidate("b", 1.2, 9.5), _candidate("c", 1.3, 7), _candidate("d", 2.0, 0)]
    front = pareto(found[::-1])
    assert [one.name for one in front] == ["a", "c", "d"]
    assert [one.damage_percent for one in front] == sorted((one.damage_percent for one in front), reverse=True)


def test_only_what_is_fast_enough_is_chosen_and_of_that_the_least_damage() -> None:
    found = [_candidate(PLAIN, 1.0, 9), _candidate("a", 1.09, 7), _candidate("b", 1.11, 5), _candidate("fp32", 3, 0)]
    assert [one.name for one in within(found, Budget(ratio=1.1))] == ["a", PLAIN]
    assert [one.name for one in within(found, Budget(latency_s=0.02))] == ["b", "a", PLAIN]
    assert within(found, Budget(latency_s=0.005)) == []


def test_the_search_keeps_the_bad_block_in_float_and_verifies_what_it_chose(spoiled_run, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    limits = ["--max-latency", "50x", "--max-drop", "100", "--threads", "1"]
    flags = ["--student", str(spoiled_run), "--target", "onnx", "--out", str(out), "--json", *limits]
    assert main(flags) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((out / "search.json").read_text())
    found = {one["name"]: one for one in record["targets"]["onnx"]["candidates"]}
    mixes = [one for one in found.values() if any(layer.startswith(f"{BAD}.0") for layer in one["float_layers"])]
    assert min(one["damage_percent"] for one in mixes) < found[PLAIN]["damage_percent"] / 2
    assert found[PLAIN]["verified"]["images"] == 6
    kept = Bundle.open(out / "onnx")
    assert kept.manifest.verified is not None
    assert record["targets"]["onnx"]["chosen"] in found
    assert sorted(path.name for path in out.iterdir()) == ["onnx", "pareto.png", "search.json"]
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_a_budget_that_nothing_meets_ends_with_the_nearest_and_leaves_nothing(
    deployed_student, tmp_path, capsys
) -> None:
    flags = ["--student", str(deployed_student.run), "--target", "onnx", "--max-latency", "0.001ms"]
    assert main([*flags, "--out", str(tmp_path / "out"), "--threads", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: nothing within --max-latency 0.001ms")
    assert "nearest: onnx" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--target", "tensorrt"], "no target tensorrt: known are"),
        (["--max-latency", "fast"], "expected milliseconds"),
        (["--max-latency", "0ms"], "expected milliseconds"),
        (["--max-drop", "-1"], "expected a number from 0 to 100"),
    ],
)
def test_wrong_usage_is_told_with_what_is_expected(flags, said, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_bad_input_ends_in_one_line(deployed_student, tmp_path, capsys) -> None:
    student = ["--student", str(deployed_student.run)]
    assert main([*student, "--out", str(tmp_path)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert main([*student, "--out", str(tmp_path / "out"), "--data", str(tmp_path / "no.yaml")]) == 1
    assert "check the path of the data.yaml" in capsys.readouterr().err
    assert main([*student, "--out", str(tmp_path / "out"), "--calibration", str(tmp_path)]) == 1
    assert "no images" in capsys.readouterr().err


def test_bundles_timed_in_turns_are_compared_with_the_reference(bundles) -> None:
    paths = {"one": bundles("onnx", "fp32"), "other": bundles("onnx", "int8")}
    timing = time_bundles(paths, "one", threads=1, rounds=2)
    assert timing["one"].ratio == 1
    assert timing["one"].ratio_spread == 0
    assert timing["other"].samples == 12
    assert timing["other"].p50_s > 0
