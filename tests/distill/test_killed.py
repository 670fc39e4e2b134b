"""Comparing a run that was killed with one that was not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from distill import killed
from distill.killed import Kill, Verdict, compare_runs


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


def test_a_folder_that_exists_and_a_training_that_fails_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert killed.main(["--out", str(tmp_path)]) == 1
    assert "never overwritten" in capsys.readouterr().err
    assert killed.main(["--out", str(tmp_path / "new"), "--data", "nowhere.yaml", "--losses", "none"]) == 1
    assert "nowhere.yaml" in capsys.readouterr().err.splitlines()[-1]
