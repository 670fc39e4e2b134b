"""Runs that are interrupted, killed or meet a NaN: what is kept, and that resuming is the same run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint

from distill import yolo
from distill.trainer import DistillationTrainer

REPOSITORY = Path(__file__).resolve().parents[2]

Arguments = Callable[..., list[str]]
ReadResults = Callable[[Path], list[dict[str, str]]]
InterruptAfter = Callable[[int], pytest.MonkeyPatch]


def weights(out: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(out / "train" / "weights" / "last.pt")[0].state_dict()
    return state


def same_weights(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_resumed_run_equals_the_uninterrupted_one(
    finished_run: Path, interrupted_run: Path, read_results: ReadResults
) -> None:
    assert len(read_results(interrupted_run)) == 2
    assert yolo.main(["--resume", str(interrupted_run)]) == 0
    assert read_results(interrupted_run) == read_results(finished_run)
    assert same_weights(interrupted_run, finished_run)


def test_a_resumed_run_with_its_images_in_memory_equals_the_uninterrupted_one(
    arguments: Arguments, interrupt_after: InterruptAfter, read_results: ReadResults, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    in_memory = ("--epochs", "2", "--set", "cache=True")
    assert yolo.main(arguments(whole, *in_memory)) == 0
    patch = interrupt_after(1)
    assert yolo.main(arguments(cut, *in_memory)) == 130
    patch.undo()
    assert yolo.main(["--resume", str(cut)]) == 0
    assert read_results(cut) == read_results(whole)
    assert same_weights(cut, whole)


def test_a_killed_process_is_resumed_to_the_same_weights(
    finished_run: Path, arguments: Arguments, read_results: ReadResults, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "distill.yolo", *arguments(out)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = out / "train" / "weights" / "state.pt"
    while process.poll() is None and not state.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert state.exists()
    assert not (out / "student").exists()
    assert yolo.main(["--resume", str(out)]) == 0
    assert read_results(out) == read_results(finished_run)
    assert same_weights(out, finished_run)


def test_a_row_written_before_its_state_is_not_written_twice(
    finished_run: Path, interrupted_run: Path, read_results: ReadResults
) -> None:
    results = interrupted_run / "train" / "results.csv"
    third = (finished_run / "train" / "results.csv").read_text().splitlines()[3]
    results.write_text(results.read_text() + third + "\n")  # as a kill between the row and the checkpoint leaves it
    assert yolo.main(["--resume", str(interrupted_run)]) == 0
    assert read_results(interrupted_run) == read_results(finished_run)


def test_a_run_killed_after_its_last_epoch_is_only_published(
    finished_run: Path,
    arguments: Arguments,
    interrupt_after: InterruptAfter,
    read_results: ReadResults,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    patch = interrupt_after(4)
    assert yolo.main(arguments(out)) == 130
    patch.undo()
    assert yolo.main(["--resume", str(out)]) == 0
    ours, theirs = (json.loads((o / "student" / "student.json").read_text()) for o in (out, finished_run))
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=0.01)
    assert len(read_results(out)) == 4
    assert same_weights(out, finished_run)
    students = [YOLO(o / "student" / "student.pt").model.state_dict() for o in (out, finished_run)]
    assert all(torch.equal(students[0][k], students[1][k]) for k in students[1])
    assert {p.name for p in out.rglob("*.pt")} == {"best.pt", "last.pt", "student.pt"}


def test_ctrl_c_says_how_to_continue(
    arguments: Arguments, interrupt_after: InterruptAfter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my run"
    interrupt_after(1)
    assert yolo.main(arguments(out)) == 130
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == f"interrupted after 1 of 4 epochs: continue with python -m distill.yolo --resume '{out}'"
    assert (out / "train" / "weights" / "last.pt").exists()
    assert not (out / "student").exists()


def test_ctrl_c_before_the_first_epoch_leaves_nothing(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: DistillationTrainer) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(DistillationTrainer, "save_model", interrupt)
    assert yolo.main(arguments(tmp_path / "run")) == 130
    assert "nothing was kept" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_nan_is_recovered_from_with_the_distillation_alive(
    arguments: Arguments, read_results: ReadResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = DistillationTrainer.preprocess_batch
    struck: list[int] = []

    def prepare_and_poison(self: DistillationTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        prepared = prepare(self, batch)
        if self.epoch == 2 and len(struck) < 3:  # every batch of the third epoch, the first time
            struck.append(1)
            prepared["img"] = prepared["img"] * float("nan")
        return prepared

    monkeypatch.setattr(DistillationTrainer, "preprocess_batch", prepare_and_poison)
    assert yolo.main(arguments(tmp_path / "run")) == 0
    rows = read_results(tmp_path / "run")
    assert len(struck) == 3
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert all(float(row["train/kd_feature"]) > 0 for row in rows)


def test_resuming_refuses_what_would_make_it_another_run(
    interrupted_run: Path,
    finished_run: Path,
    toy_data: Path,
    toy_teacher: Path,
    tmp_path: Path,
    save_model: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = save_model(tmp_path / "other.pt", "yolov8n.yaml")
    damaged, stateless = (Path(shutil.copytree(interrupted_run, tmp_path / n)) for n in ("damaged", "stateless"))
    (damaged / "train" / "weights" / "state.pt").write_bytes(b"PK\x03\x04 not a state")
    (stateless / "train" / "weights" / "state.pt").unlink()
    cut = str(interrupted_run)
    for given, words in (
        (["--resume", cut, "--teacher", str(other)], ("SHA-256", "original file")),
        (["--resume", cut, "--epochs", "9"], ("--epochs 9", "has 4")),
        (["--resume", cut, "--losses", "ld=1.0"], ("--losses ld=1.0", "without --resume")),
        (["--resume", cut, "--temperature", "4"], ("--temperature 4.0", "1.0")),
        (["--resume", cut, "--set", "nbs=16"], ("--set nbs=16", "without --resume")),
        (["--resume", cut, "--out", "elsewhere"], ("--out", "--resume")),
        (["--resume", str(damaged)], ("state.pt", "damaged")),
        (["--resume", str(stateless)], ("nothing to resume", "no epoch")),
        (["--resume", str(finished_run)], ("finished", "nothing to resume")),
        (["--resume", str(tmp_path)], ("recipe.json", "not a run")),
    ):
        capsys.readouterr()
        assert yolo.main(given) == 1
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1, error
        assert error[0].startswith("error: ")
        assert all(word in error[0] for word in words), error
    assert yolo.main(["--resume", cut, "--epochs", "4", "--data", str(toy_data), "--teacher", str(toy_teacher)]) == 0


def test_resuming_refuses_changed_training_data(
    arguments: Arguments,
    toy_copy: Path,
    interrupt_after: InterruptAfter,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    patch = interrupt_after(1)
    assert yolo.main(arguments(out, "--data", str(toy_copy), plain=True)) == 130
    patch.undo()
    (toy_copy.parent / "labels" / "train" / "0.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    assert yolo.main(["--resume", str(out)]) == 1
    assert "changed since" in capsys.readouterr().err
