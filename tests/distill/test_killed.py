"""Comparing a run that was killed with one that was not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from distill import killed
from distill.killed import Kill, Verdict, compare_runs
from distill.teacher_running import RECORD_FILE
from distill.teacher_speed import Layout, SpeedRecord


def test_a_run_equals_itself_and_one_bit_is_noticed(finished_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished_run, tmp_path / "copy"))
    begun = Verdict([Kill(1, 2.5, 1)])
    assert compare_runs(finished_run, copy, begun) == begun
    assert begun.equal
    checkpoint = torch.load(copy / "train" / "weights" / "last.pt", weights_only=False)
    with torch.no_grad():
        next(checkpoint["model"].parameters()).view(-1)[0] += 0.25
    torch.save(checkpoint, copy / "train" / "weights" / "last.pt")
    results = copy / "train" / "results.csv"
    results.write_text(results.read_text().replace("\n2,", "\n3,"))
    verdict = compare_runs(finished_run, copy, begun)
    assert verdict.differing == ["copy/train/weights/last.pt"]
    assert verdict.largest_difference == pytest.approx(0.25, abs=1e-3)
    assert not verdict.same_results
    assert not verdict.equal


def test_every_kill_says_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kills = [Kill(1, 2.5, 3), Kill(1, 0.5, None), Kill(2, 9.0, None, published=True)]
    monkeypatch.setattr(
        killed, "_study", lambda *_: Verdict(kills, largest_difference=0.5, differing=["killed-2/x.pt"])
    )
    assert killed.main(["--out", str(tmp_path / "runs")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[1] for line in lines[:3]] == [
        "resumable after epoch 3",
        "no epoch complete: begun anew",
        "its student published",
    ]
    assert "DIFFERENT by up to 0.5: killed-2/x.pt" in lines[-1]


def test_runs_that_begin_anew_run_their_teacher_as_the_first_one_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    class Training:
        """One that ends at once and says that its teacher ran in bfloat16."""

        returncode = 0

        def __init__(self, arguments: Sequence[str]) -> None:
            started.append(list(arguments))
            self.out = Path(arguments[arguments.index("--out") + 1])

        def communicate(self) -> tuple[str, str]:
            for name in ("student", "train"):
                (self.out / name).mkdir(parents=True, exist_ok=True)
            (self.out / "student" / "student.json").write_text("{}")
            SpeedRecord(self.out / "train" / RECORD_FILE).write(0, "cpu", Layout("bf16", channels_last=True))
            return "", ""

        def wait(self, seconds: float) -> int:
            return self.returncode

    monkeypatch.setattr(killed, "_start", Training)
    monkeypatch.setattr(killed, "compare_runs", lambda *_: Verdict([Kill(1, 1.0, None)]))
    assert killed.main(["--out", str(tmp_path / "runs"), "--kills", "1", "--epochs", "2"]) == 0
    first, second = started
    assert "--teacher-precision" not in first
    assert second[second.index("--teacher-precision") + 1] == "bf16-channels-last"


def test_a_folder_that_exists_and_a_training_that_fails_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert killed.main(["--out", str(tmp_path)]) == 1
    assert "never overwritten" in capsys.readouterr().err
    assert killed.main(["--out", str(tmp_path / "new"), "--data", "nowhere.yaml", "--losses", "none"]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err.splitlines()[-1]
