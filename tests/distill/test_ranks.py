"""Distillation in two processes over gloo: the same step, equal weights, exact resuming, no waiting for the dead."""

from __future__ import annotations

import csv
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ultralytics.nn.tasks import load_checkpoint

from distill import ranks
from distill.errors import DistillError

PROGRAM = Path(__file__).parent / "two_ranks.py"
REPOSITORY = Path(__file__).resolve().parents[2]
Processes = list["subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def work(toy_data: Path, toy_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left: steps, a whole run, a resumed one, and one whose second process died."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = start(folder, toy_teacher, toy_data, "all")
    try:
        codes = [process.wait(900) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [1, 7], (folder / "err-0").read_text() + (folder / "err-1").read_text()
    return folder


def start(work: Path, teacher: Path, data: Path, stage: str, patience_s: str = "60") -> Processes:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "EDGE_DISTILL_PATIENCE_S": patience_s}
    processes = []
    for rank in ("0", "1"):
        with (work / f"out-{rank}").open("wb") as out, (work / f"err-{rank}").open("wb") as err:
            command = [sys.executable, str(PROGRAM), str(work), str(teacher), str(data), stage]
            environment = {**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=out, stderr=err))
    return processes


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "train" / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def test_two_processes_with_equal_halves_take_the_step_of_one_with_the_whole(work: Path, toy_teacher: Path) -> None:
    program = runpy.run_path(str(PROGRAM))
    whole = program["gradients"]([0, 1, 0, 1], str(toy_teacher), program["SEVERAL"], labels=True, statistics=True)
    for rank in (0, 1):
        ours = torch.load(work / f"steps-{rank}.pt")["alike"]
        assert ours.keys() == whole.keys()
        assert any(name.startswith("projectors") for name in ours)
        for name, gradient in whole.items():
            scale = float(gradient.abs().max())
            assert float((ours[name] - gradient).abs().max()) <= 1e-4 * scale + 1e-6, name


def test_unlike_halves_take_it_too_where_no_sum_runs_over_the_batch(work: Path, toy_teacher: Path) -> None:
    program = runpy.run_path(str(PROGRAM))
    whole = program["gradients"]([0, 1, 2, 3], str(toy_teacher), {"fitnets": 1.0}, labels=False, statistics=False)
    ours = [torch.load(work / f"steps-{rank}.pt")["unlike"] for rank in (0, 1)]
    for name, gradient in whole.items():
        assert torch.equal(ours[0][name], ours[1][name]), name
        scale = float(gradient.abs().max())
        assert float((ours[0][name] - gradient).abs().max()) <= 2e-3 * scale + 1e-6, name


def test_both_processes_distil_and_end_with_equal_weights_and_projectors(work: Path) -> None:
    for row in rows(work / "whole"):
        assert all(float(row[f"train/kd_{name}"]) > 0 for name in ("response", "ld", "feature"))
    one, other = (torch.load(work / f"trained-{rank}.pt") for rank in (0, 1))
    assert one["projectors"]
    for kind in ("model", "projectors"):
        assert all(torch.equal(one[kind][name], other[kind][name]) for name in one[kind])


def test_a_resumed_run_of_two_processes_equals_the_uninterrupted_one(work: Path) -> None:
    assert rows(work / "cut") == rows(work / "whole")
    assert len(rows(work / "cut")) == 2
    states = [load_checkpoint(work / run / "train" / "weights" / "last.pt")[0].state_dict() for run in ("cut", "whole")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_only_the_first_process_writes_and_reports(work: Path) -> None:
    assert (work / "whole" / "student" / "student.pt").exists()
    assert (work / "whole" / "agreement.json").exists()
    assert (work / "out-0").read_text().count("mAP50-95") == 2
    assert (work / "out-1").read_text() == ""


def test_a_process_whose_fellow_died_ends_with_one_line(work: Path) -> None:
    error = (work / "err-0").read_text().strip().splitlines()[-1]
    assert error.startswith("error: process 0 of 2 lost another one")
    assert error.endswith("look at the others' logs, then start all again")
    assert "Traceback" not in (work / "err-0").read_text()
    assert not (work / "dead").exists()  # no epoch was complete


def test_a_process_whose_fellow_hangs_ends_in_bounded_time(toy_data: Path, toy_teacher: Path, tmp_path: Path) -> None:
    first, second = start(tmp_path, toy_teacher, toy_data, "hang", patience_s="6")
    try:
        assert first.wait(240) == 1
        assert second.poll() is None
    finally:
        second.kill()
        second.wait()
        first.kill()
    error = (tmp_path / "err-0").read_text().strip().splitlines()[-1]
    assert error.startswith("error: process 0 of 2 lost another one, which ended or was silent for 6 s")


@pytest.mark.parametrize(
    ("batch", "device", "words"),
    [(4, "cpu", None), (6, "0,1,2,3", "give a multiple, such as 8"), (8, "0,1,2,3", None)],
)
def test_a_batch_that_cannot_be_shared_is_refused(batch: int, device: str, words: str | None) -> None:
    if words is None:
        ranks.check_ranks(batch, device)
        return
    with pytest.raises(DistillError, match=words):
        ranks.check_ranks(batch, device)
