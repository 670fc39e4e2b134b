"""A whole distillation on a tiny problem: what it writes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickletools
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from ultralytics.utils.callbacks import get_default_callbacks

from distill import yolo
from distill.callbacks import Distillation
from distill.trainer import DistillationTrainer

Arguments = Callable[..., list[str]]
ReadResults = Callable[[Path], list[dict[str, str]]]


def test_every_loss_has_its_column_and_validation_has_none(finished_run: Path, read_results: ReadResults) -> None:
    rows = read_results(finished_run)
    assert len(rows) == 4
    for name in ("response", "ld", "feature"):
        assert all(float(row[f"train/kd_{name}"]) > 0 for row in rows)
    assert not [column for column in rows[0] if column.startswith("val/kd_")]


def test_student_json_describes_the_student(finished_run: Path, toy_data: Path, toy_teacher: Path) -> None:
    student = json.loads((finished_run / "student" / "student.json").read_text())
    file = finished_run / "student" / student["student"]["file"]
    assert student["student"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert student["teacher"]["sha256"] == hashlib.sha256(toy_teacher.read_bytes()).hexdigest()
    assert student["teacher"]["parameters"] > 3 * student["student"]["parameters"]
    assert student["class_names"] == ["red", "blue"]
    assert (student["strides"], student["reg_max"], student["imgsz"]) == ([8, 16, 32], 16, 64)
    assert student["losses"].keys() == {"response", "ld", "feature"}
    assert student["data"]["yaml"] == str(toy_data)
    assert student["data"]["train_sha256"] != student["data"]["val_sha256"]
    assert 0 <= student["metrics"]["map50_95"] <= student["metrics"]["map50"] <= 1


def test_no_state_and_no_half_written_file_is_left_behind(finished_run: Path) -> None:
    names = {p.name for p in finished_run.rglob("*") if p.is_file()}
    assert names == {
        *("recipe.json", "args.yaml", "results.csv", "best.pt", "last.pt", "student.pt", "student.json"),
        *("agreement.json", "teacher.json"),
    }


def test_the_student_loads_and_predicts_where_this_project_does_not_exist(finished_run: Path, tmp_path: Path) -> None:
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"distill", "deploy", "bench", "devices"}}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import numpy as np
from ultralytics import YOLO
model = YOLO({str(finished_run / "student" / "student.pt")!r})
boxes = model.predict(np.zeros((64, 64, 3), np.uint8), imgsz=64, verbose=False)[0].boxes
print(sorted(model.names.values()), boxes.data.shape[1])
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "['blue', 'red'] 6"


def test_no_checkpoint_names_a_module_of_this_project(finished_run: Path, interrupted_run: Path) -> None:
    files = [finished_run / "student" / "student.pt", *(finished_run / "train" / "weights").glob("*.pt")]
    files += (interrupted_run / "train" / "weights").glob("*.pt")
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


def test_the_student_is_as_large_as_a_plain_one(
    finished_run: Path, arguments: Arguments, read_results: ReadResults, tmp_path: Path
) -> None:
    out = tmp_path / "plain"
    assert yolo.main(arguments(out, "--epochs", "1", plain=True)) == 0
    plain, distilled = (folder / "student" / "student.pt" for folder in (out, finished_run))
    assert distilled.stat().st_size == pytest.approx(plain.stat().st_size, rel=0.002)
    student = json.loads((out / "student" / "student.json").read_text())
    assert student["teacher"] is None
    assert student["losses"] == {}
    assert not [column for column in read_results(out)[0] if "kd_" in column]


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
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert yolo.main(arguments(tmp_path / "run", "--epochs", "1", "--json", plain=True)) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["epochs"] == 1
    assert captured.err.strip().splitlines()[-1] == f"next: python -m deploy.tflite --int8 --student {tmp_path / 'run'}"
    assert "\r" not in captured.err  # no progress bar where there is no terminal


def test_runs_without_a_name_are_numbered(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = arguments(Path("unused"), "--epochs", "1", plain=True)
    del given[given.index("--out") : given.index("--out") + 2]
    (tmp_path / "runs" / "distill" / "yolov8n").mkdir(parents=True)
    assert yolo.main(given) == 0
    assert (tmp_path / "runs" / "distill" / "yolov8n-2" / "student" / "student.pt").exists()
    assert "mAP50-95" in capsys.readouterr().out


def test_a_setting_of_ultralytics_reaches_the_training_and_the_record(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert yolo.main([*arguments(out, plain=True), "--epochs", "1", "--set", "nbs=4", "lr0=0.02"]) == 0
    args = yaml.safe_load((out / "train" / "args.yaml").read_text())
    assert (args["nbs"], args["lr0"]) == (4, 0.02)
    assert json.loads((out / "student" / "student.json").read_text())["settings"] == {"nbs": 4, "lr0": 0.02}
