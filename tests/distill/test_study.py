"""A study of recipes: its trainings, its page, and what it refuses."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ultralytics", reason="distillation needs the [train] extra")

from distill import jobs, peer, study
from distill.data import open_data_set
from distill.errors import DistillError
from distill.jobs import Job, job_command
from distill.study import Arm, Study, parse_arm
from distill.study_page import study_page


@pytest.fixture
def budget(toy_data: Path) -> Study:
    return Study("yolov8n.yaml", str(toy_data), ("t", "v"), 3, 64, 4, ("val=False",), {})


def test_an_arm_is_a_recipe_with_its_teachers_and_assistants(toy_teacher: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    other.write_bytes(b"")
    assert parse_arm("none", None) == Arm("none", "none", (), ())
    assert parse_arm("damo", str(toy_teacher)).teachers == (str(toy_teacher.resolve()),)
    several = parse_arm(f"default@{toy_teacher}+{other}", None)
    assert several.teachers == (str(toy_teacher.resolve()), str(other.resolve()))
    chain = parse_arm(f"default@{toy_teacher}:m.yaml:s.yaml", None)
    assert (chain.recipe, chain.assistants) == ("default", ("m.yaml", "s.yaml"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("none@{t}", "none has no teacher"),
        ("dammo@{t}", "unknown recipe 'dammo'"),
        ("damo", "has no teacher"),
        ("damo@nowhere.pt", "not found"),
        ("distill_model@{t}:s.yaml", "one teacher and no assistants"),
        ("distill_model@{t}+{t}", "one teacher and no assistants"),
    ],
)
def test_an_arm_that_cannot_be_trained_is_refused(text: str, complaint: str, toy_teacher: Path) -> None:
    with pytest.raises(DistillError, match=complaint):
        parse_arm(text.format(t=toy_teacher), None)


def test_every_arm_has_the_same_budget_and_differs_only_in_its_teaching(budget: Study, tmp_path: Path) -> None:
    plain = budget.job(Arm("none", "none", (), ()), 1, tmp_path)
    taught = budget.job(Arm("damo@t.pt:s.yaml", "damo", ("t.pt",), ("s.yaml",)), 1, tmp_path)
    theirs = budget.job(Arm("distill_model", "distill_model", ("t.pt",), ()), 1, tmp_path)
    assert (plain.module, taught.module, theirs.module) == ("distill.yolo", "distill.yolo", "distill.peer")
    shared = ("--student yolov8n.yaml", "--epochs 3", "--imgsz 64", "--batch 4", "--seed 1", "--set val=False")
    for job in (plain, taught, theirs):
        assert all(part in " ".join(job.arguments) for part in shared)
    assert "--losses none" in " ".join(plain.arguments)
    assert "--teacher t.pt --recipe damo --assistants s.yaml" in " ".join(taught.arguments)
    assert len({job.out for job in (plain, taught, theirs)}) == 3


def test_a_job_that_broke_off_is_resumed_where_it_can_be(tmp_path: Path) -> None:
    state = tmp_path / "run" / "train" / "weights" / "state.pt"
    state.parent.mkdir(parents=True)
    resumed, anew = (Job("j", "distill.yolo", ("--epochs", "1"), tmp_path / "run", able) for able in (True, False))
    assert "--resume" not in job_command(resumed)
    state.write_bytes(b"")
    assert job_command(resumed)[-2:] == ["--resume", str(tmp_path / "run")]
    assert job_command(anew)[-2:] == ["--out", str(tmp_path / "run")]


def test_a_job_killed_before_anything_could_be_resumed_begins_anew(tmp_path: Path, monkeypatch: Any) -> None:
    run, seen = tmp_path / "run", []
    (run / "train").mkdir(parents=True)
    (run / "recipe.json").write_text("{}")

    def begin(command: list[str], **_: Any) -> Any:
        seen.append((command[-2:], run.exists()))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(jobs.subprocess, "run", begin)
    jobs.run_job(Job("j", "distill.yolo", ("--epochs", "1"), run))
    assert seen == [(["--out", str(run)], False)]


def test_a_job_that_fails_says_its_last_words_and_where_its_log_is(tmp_path: Path) -> None:
    job = Job("default, seed 0", "distill.yolo", ("--data", "nowhere.yaml", "--losses", "none"), tmp_path / "run")
    with pytest.raises(DistillError, match=r"default, seed 0 failed with exit code 1: error: data .*run\.log"):
        jobs.run_job(job)


def test_a_study_trains_what_is_missing_once_and_keeps_to_its_budget(
    toy_data: Path, toy_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    out, report = tmp_path / "study", tmp_path / "docs" / "results" / "study.md"
    argv = ["--teacher", str(toy_teacher), "--data", str(toy_data), "--imgsz", "64", "--batch", "4", "--out", str(out)]
    argv += ["--arms", "none", "distill_model", "--seeds", "1", "--report", str(report), "--set", "amp=False"]
    assert study.main([*argv, "--epochs", "1"]) == 0
    text = report.read_text()
    assert "| none | " in text
    assert "| distill_model | " in text
    assert (tmp_path / "docs" / "images" / "distillation.png").stat().st_size > 1000
    with (out / "students" / "distill_model" / "seed-0" / "train" / "results.csv").open() as file:
        assert float(next(csv.DictReader(file))["train/dis_loss"]) > 0
    sizes = [path.stat().st_size for path in sorted(out.glob("students/*/seed-0/student/student.pt"))]
    assert abs(sizes[0] - sizes[1]) < 2000

    def nothing(command: list[str], **_: Any) -> None:
        raise AssertionError(command)

    monkeypatch.setattr(jobs.subprocess, "run", nothing)
    assert study.main([*argv, "--epochs", "1"]) == 0
    capsys.readouterr()
    assert study.main([*argv, "--epochs", "2"]) == 1
    assert "holds a study with another epochs" in capsys.readouterr().err


def test_the_page_says_what_the_numbers_say(budget: Study, toy_data: Path, tmp_path: Path) -> None:
    def runs(*scores: float) -> dict[int, Any]:
        return {s: {"metrics": {"map50_95": v, "map50": v}, "teachers": []} for s, v in enumerate(scores)}

    found = {
        "none": runs(0.40, 0.41, 0.42),
        "distill_model": runs(0.40, 0.42, 0.41),
        "damo": runs(0.45, 0.46, 0.4701),
        "default": {},
    }
    text = study_page(
        budget, found, open_data_set(str(toy_data)), "T", "python -m x", tmp_path / "i.png", tmp_path / "r.md"
    )
    row = next(line for line in text.splitlines() if line.startswith("| damo"))
    assert "+5.00 ± 0.01 (+5.00 to +5.01)" in row
    assert "| <0.001 | 0.250 | helped |" in row
    assert row.rstrip().endswith("| 3 |")
    assert "+5.00 ± 1.01 (+4.00 to +6.01)" in row
    assert "Helped (paired t-test below 0.05): damo (+5.00)" in text
    assert "No difference shown: distill_model (+0.00)" in text
    assert "10 training and 4 validation images, 2 classes" in text
    assert not any(line.startswith("| default") for line in text.splitlines())


def test_ultralytics_own_needs_a_teacher_and_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert peer.main(["--student", "yolov8n.yaml"]) == 1
    assert "needs --teacher and --out" in capsys.readouterr().err
