"""Several teachers through the command: what is trained, recorded, resumed and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ultralytics.nn.tasks import load_checkpoint

from distill import yolo
from distill.recipe import read_recipe
from distill.teacher import file_sha256

Arguments = Callable[..., list[str]]
ReadResults = Callable[[Path], list[dict[str, str]]]


@pytest.fixture(scope="module")
def eleven(save_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained teacher of another architecture with the same classes."""
    return save_model(tmp_path_factory.mktemp("eleven") / "eleven.pt", "yolo11n.yaml")


def test_two_architectures_teach_one_student_and_both_are_recorded_and_verified(
    arguments: Arguments,
    toy_teacher: Path,
    eleven: Path,
    read_results: ReadResults,
    interrupt_after: Callable[[int], pytest.MonkeyPatch],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = ["--teacher", f"{toy_teacher},{eleven}", "--combine", "confidence", "--epochs", "2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    losses = ["--losses", "response=0.5,ld=0.5,cwd=0.25"]
    assert yolo.main([*arguments(whole), *both, *losses]) == 0
    assert f"taught by {toy_teacher.name} + eleven.pt" in capsys.readouterr().out
    assert all(float(row[f"train/kd_{n}"]) > 0 for row in read_results(whole) for n in ("response", "ld", "cwd"))
    student = json.loads((whole / "student" / "student.json").read_text())
    assert [(t["file"], t["sha256"]) for t in student["teachers"]] == [
        (path.name, file_sha256(path)) for path in (toy_teacher, eleven)
    ]
    assert (student["teacher"]["name"], student["combine"]) == (f"{toy_teacher.name} + eleven.pt", "confidence")

    patch = interrupt_after(1)
    assert yolo.main([*arguments(cut), *both, *losses]) == 130
    patch.undo()
    for given, words in (
        ([f"{eleven},{toy_teacher}"], "SHA-256"),
        ([str(toy_teacher)], "names 1 files, but the run began with 2"),
        ([f"{toy_teacher},{eleven}", "--combine", "mean"], "--combine mean contradicts the run"),
    ):
        assert yolo.main(["--resume", str(cut), "--teacher", *given]) == 1
        assert words in capsys.readouterr().err
    moved = tmp_path / "moved.pt"
    moved.write_bytes(eleven.read_bytes())
    assert yolo.main(["--resume", str(cut), "--teacher", f"{toy_teacher},{moved}"]) == 0
    assert read_results(cut) == read_results(whole)
    ours, theirs = (load_checkpoint(o / "train/weights/last.pt")[0].state_dict() for o in (cut, whole))
    assert all(bool((ours[k] == theirs[k]).all()) for k in theirs)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--combine", "mean"], "--combine mean is for several teachers"),
        (["--teacher", "TEACHER,"], "has an empty name"),
        (["--teacher", "TEACHER,nowhere.pt"], "teacher 'nowhere.pt' not found"),
        (["--teacher", "TEACHER,THREE"], "teacher knows 3 classes, the student's data has 2"),
    ],
)
def test_what_does_not_make_several_teachers_is_one_line(
    changed: list[str],
    words: str,
    arguments: Arguments,
    toy_teacher: Path,
    save_model: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    three = tmp_path / "three.pt"
    if any("THREE" in text for text in changed):
        save_model(three, "yolov8n.yaml", ("red", "blue", "green"))
    changed = [text.replace("TEACHER", str(toy_teacher)).replace("THREE", str(three)) for text in changed]
    assert yolo.main([*arguments(tmp_path / "run"), *changed]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_recipe_of_before_there_were_several_teachers_is_read(interrupted_run: Path, toy_teacher: Path) -> None:
    path = interrupted_run / "recipe.json"
    content = json.loads(path.read_text())
    (teacher,) = content.pop("teachers")
    for newer in ("combine", "schedule"):
        content.pop(newer)
    old = {**content, "schema": 1, "teacher": teacher["path"], "teacher_sha256": teacher["sha256"]}
    path.write_text(json.dumps(old))
    assert [t.path for t in read_recipe(interrupted_run).teachers] == [str(toy_teacher)]
    assert read_recipe(interrupted_run).combine == "mean"
    path.write_text(json.dumps({**old, "colour": "red"}))
    assert yolo.main(["--resume", str(interrupted_run)]) == 1
