"""A whole distillation on a tiny problem: what it writes, and what survives a kill."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickletools
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.callbacks import get_default_callbacks

from distill import yolo
from distill.callbacks import Distillation
from distill.trainer import DistillationTrainer

REPOSITORY = Path(__file__).resolve().parents[2]
EPOCHS = 4


def command(data: Path, teacher: Path, out: Path, *more: str) -> list[str]:
    """Arguments of a small distillation: two batches of 4 and one of 2 per epoch, gradients summed over several."""
    return [
        *("--teacher", str(teacher), "--student", "yolov8n.yaml", "--data", str(data), "--epochs", str(EPOCHS)),
        *("--imgsz", "64", "--batch", "4", "--device", "cpu", "--out", str(out), *more),
    ]


@pytest.fixture(scope="module")
def run(toy_data: Path, toy_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished distillation."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert yolo.main(command(toy_data, toy_teacher, out)) == 0
    return out


@pytest.fixture
def interrupted(toy_data: Path, toy_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the same distillation, stopped by Ctrl-C after two of its epochs."""
    out = tmp_path / "cut"
    _interrupt_after(2, monkeypatch)
    assert yolo.main(command(toy_data, toy_teacher, out)) == 130
    monkeypatch.undo()
    return out


def _interrupt_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save = DistillationTrainer.save_model

    def save_and_interrupt(self: DistillationTrainer) -> bool:
        saved = save(self)
        if self.epoch + 1 == epochs:
            raise KeyboardInterrupt
        return saved

    monkeypatch.setattr(DistillationTrainer, "save_model", save_and_interrupt)


def results(out: Path) -> list[dict[str, str]]:
    with (out / "train" / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_checkpoint(out / "train" / "weights" / "last.pt")[0].state_dict()
    return state


def same_weights(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_every_loss_has_its_column_and_validation_has_none(run: Path) -> None:
    rows = results(run)
    assert len(rows) == EPOCHS
    for name in ("response", "ld", "feature"):
        assert all(float(row[f"train/kd_{name}"]) > 0 for row in rows)
    assert not [column for column in rows[0] if column.startswith("val/kd_")]


def test_student_json_describes_the_student(run: Path, toy_data: Path, toy_teacher: Path) -> None:
    student = json.loads((run / "student" / "student.json").read_text())
    file = run / "student" / student["student"]["file"]
    assert student["student"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert student["teacher"]["sha256"] == hashlib.sha256(toy_teacher.read_bytes()).hexdigest()
    assert student["teacher"]["parameters"] > 3 * student["student"]["parameters"]
    assert student["class_names"] == ["red", "blue"]
    assert (student["strides"], student["reg_max"], student["imgsz"]) == ([8, 16, 32], 16, 64)
    assert student["losses"].keys() == {"response", "ld", "feature"}
    assert student["data"]["yaml"] == str(toy_data)
    assert student["data"]["train_sha256"] != student["data"]["val_sha256"]
    assert 0 <= student["metrics"]["map50_95"] <= student["metrics"]["map50"] <= 1


def test_no_state_and_no_half_written_file_is_left_behind(run: Path) -> None:
    names = {p.name for p in run.rglob("*") if p.is_file()}
    assert names == {"recipe.json", "args.yaml", "results.csv", "best.pt", "last.pt", "student.pt", "student.json"}


def test_the_student_loads_and_predicts_where_this_project_does_not_exist(run: Path, tmp_path: Path) -> None:
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"distill", "deploy", "bench", "devices"}}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import numpy as np
from ultralytics import YOLO
model = YOLO({str(run / "student" / "student.pt")!r})
boxes = model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)[0].boxes
print(sorted(model.names.values()), boxes.data.shape[1])
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "['blue', 'red'] 6"


def test_no_checkpoint_names_a_module_of_this_project(run: Path, interrupted: Path) -> None:
    files = [run / "student" / "student.pt", *(run / "train" / "weights").glob("*.pt")]
    files += (interrupted / "train" / "weights").glob("*.pt")
    assert len(files) == 6
    for file in files:
        modules = {text.split(".")[0].split(" ")[0] for text in _pickled_strings(file)}
        assert not modules & {"distill", "deploy", "bench", "devices"}, file


def _pickled_strings(file: Path) -> Iterator[str]:
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                for _, argument, _ in pickletools.genops(io.BytesIO(archive.read(name))):
                    if isinstance(argument, str):
                        yield argument


def test_the_student_is_as_large_as_a_plain_one(run: Path, toy_data: Path, tmp_path: Path) -> None:
    assert yolo.main(_plain(toy_data, tmp_path / "plain", "--epochs", "1")) == 0
    plain, distilled = (out / "student" / "student.pt" for out in (tmp_path / "plain", run))
    assert distilled.stat().st_size == pytest.approx(plain.stat().st_size, rel=0.002)
    student = json.loads((tmp_path / "plain" / "student" / "student.json").read_text())
    assert student["teacher"] is None
    assert student["losses"] == {}
    assert not [column for column in results(tmp_path / "plain")[0] if "kd_" in column]


def _plain(data: Path, out: Path, *more: str) -> list[str]:
    return [
        *("--student", "yolov8n.yaml", "--data", str(data), "--imgsz", "64", "--batch", "4", "--losses", "none"),
        *("--device", "cpu", "--out", str(out), *more),
    ]


def test_a_resumed_run_equals_the_uninterrupted_one(run: Path, interrupted: Path) -> None:
    assert len(results(interrupted)) == 2
    assert yolo.main(["--resume", str(interrupted)]) == 0
    assert results(interrupted) == results(run)
    assert same_weights(interrupted, run)


def test_ctrl_c_says_how_to_continue(
    toy_data: Path,
    toy_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    _interrupt_after(1, monkeypatch)
    assert yolo.main(command(toy_data, toy_teacher, out)) == 130
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == f"interrupted after 1 of {EPOCHS} epochs: continue with python -m distill.yolo --resume {out}"
    assert (out / "train" / "weights" / "last.pt").exists()
    assert not (out / "student").exists()


def test_ctrl_c_before_the_first_epoch_leaves_nothing(
    toy_data: Path,
    toy_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(self: DistillationTrainer) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(DistillationTrainer, "save_model", interrupt)
    assert yolo.main(command(toy_data, toy_teacher, tmp_path / "run")) == 130
    assert "nothing was kept" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_killed_process_is_resumed_to_the_same_weights(
    run: Path, toy_data: Path, toy_teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "distill.yolo", *command(toy_data, toy_teacher, out)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = out / "train" / "weights" / "state.pt"
    while process.poll() is None and not state.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert state.exists()
    assert not (out / "student").exists()
    assert yolo.main(["--resume", str(out)]) == 0
    assert results(out) == results(run)
    assert same_weights(out, run)


def test_a_run_killed_after_its_last_epoch_is_only_published(
    run: Path, toy_data: Path, toy_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    _interrupt_after(EPOCHS, monkeypatch)
    assert yolo.main(command(toy_data, toy_teacher, out)) == 130
    monkeypatch.undo()
    assert yolo.main(["--resume", str(out)]) == 0
    ours, theirs = (json.loads((o / "student" / "student.json").read_text()) for o in (out, run))
    assert ours["metrics"] == pytest.approx(theirs["metrics"], abs=0.01)
    assert len(results(out)) == EPOCHS


def test_a_nan_is_recovered_from_with_the_distillation_alive(
    toy_data: Path, toy_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert yolo.main(command(toy_data, toy_teacher, tmp_path / "run")) == 0
    rows = results(tmp_path / "run")
    assert len(struck) == 3
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert all(float(row["train/kd_feature"]) > 0 for row in rows)


def test_the_distillation_losses_fall_on_a_problem_small_enough_to_learn(
    toy_data: Path, toy_teacher: Path, tmp_path: Path
) -> None:
    weights = {"response": 1.0, "ld": 5.0, "feature": 1.0}
    callbacks = get_default_callbacks()
    callbacks["on_pretrain_routine_end"].append(Distillation(str(toy_teacher), weights, 1.0))
    settings = {"model": "yolov8n.yaml", "data": str(toy_data), "epochs": 5, "imgsz": 64, "batch": 2, "nbs": 2}
    settings |= {"project": str(tmp_path), "name": "run", "plots": False, "device": "cpu", "val": False}
    settings |= {"optimizer": "AdamW", "lr0": 0.01, "warmup_epochs": 0, "mosaic": 0}  # enough steps to tell
    DistillationTrainer(overrides={"mode": "train", "task": "detect", **settings}, _callbacks=callbacks).train()
    with (tmp_path / "run" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in weights:
        kd = [float(row[f"train/kd_{name}"]) for row in rows]
        assert kd[-1] < 0.8 * kd[0], (name, kd)


def test_json_prints_the_student_and_nothing_else(
    run: Path, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert yolo.main(_plain(toy_data, tmp_path / "run", "--epochs", "1", "--json")) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["epochs"] == 1
    assert captured.err.strip().splitlines()[-1] == "next: python -m deploy.tflite --int8"
    assert "\r" not in captured.err  # no progress bar where there is no terminal


def test_runs_without_a_name_are_numbered(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = _plain(toy_data, tmp_path, "--epochs", "1")
    del arguments[arguments.index("--out") : arguments.index("--out") + 2]
    (tmp_path / "runs" / "distill" / "yolov8n").mkdir(parents=True)
    assert yolo.main(arguments) == 0
    assert (tmp_path / "runs" / "distill" / "yolov8n-2" / "student" / "student.pt").exists()
    assert "mAP50-95" in capsys.readouterr().out


@pytest.fixture
def resumable(interrupted: Path) -> Callable[[str], Path]:
    """Copies of the interrupted run."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(interrupted, interrupted.with_name(name)))

    return make


def test_resuming_refuses_what_would_make_it_another_run(
    resumable: Callable[[str], Path],
    run: Path,
    toy_data: Path,
    toy_teacher: Path,
    tmp_path: Path,
    save_model: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = save_model(tmp_path / "other.pt", "yolov8n.yaml")
    damaged, stateless = resumable("damaged"), resumable("stateless")
    (damaged / "train" / "weights" / "state.pt").write_bytes(b"PK\x03\x04 not a state")
    (stateless / "train" / "weights" / "state.pt").unlink()
    cut = str(resumable("cut2"))
    for arguments, words in (
        (["--resume", cut, "--teacher", str(other)], ("SHA-256", "original file")),
        (["--resume", cut, "--epochs", "9"], ("--epochs 9", f"has {EPOCHS}")),
        (["--resume", cut, "--losses", "ld=1.0"], ("--losses ld=1.0", "without --resume")),
        (["--resume", cut, "--temperature", "4"], ("--temperature 4.0", "1.0")),
        (["--resume", cut, "--out", "elsewhere"], ("--out", "--resume")),
        (["--resume", str(damaged)], ("state.pt", "damaged")),
        (["--resume", str(stateless)], ("nothing to resume", "no epoch")),
        (["--resume", str(run)], ("finished", "nothing to resume")),
        (["--resume", str(tmp_path)], ("recipe.json", "not a run")),
    ):
        assert yolo.main(arguments) == 1
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1, error
        assert error[0].startswith("error: ")
        assert all(word in error[0] for word in words), error
    assert (
        yolo.main(["--resume", cut, "--epochs", str(EPOCHS), "--data", str(toy_data), "--teacher", str(toy_teacher)])
        == 0
    )


def test_resuming_refuses_changed_training_data(
    toy_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    _interrupt_after(1, monkeypatch)
    assert yolo.main(_plain(toy_copy, out, "--epochs", "2")) == 130
    monkeypatch.undo()
    (toy_copy.parent / "labels" / "train" / "0.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    capsys.readouterr()
    assert yolo.main(["--resume", str(out)]) == 1
    assert "changed since" in capsys.readouterr().err
