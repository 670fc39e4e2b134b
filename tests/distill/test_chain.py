"""Teacher assistants: a chain of trainings that is one run."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from distill import page, yolo
from distill.teacher import file_sha256
from distill.trainer import DistillationTrainer

Arguments = Callable[..., list[str]]
CHAIN = ["--assistants", "yolov8n.yaml,yolov8n.yaml", "--epochs", "2", "--losses", "response=0.5,ld=0.5"]


def described(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "student" / "student.json").read_text())
    return content


@pytest.fixture(scope="module")
def broken_off(arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """A chain of two assistants and a student, interrupted after the first epoch of each step and resumed.

    Returns its folder, the step and epoch of everything that was saved, and the last line of each interruption.
    """
    out = tmp_path_factory.mktemp("chains") / "run"
    save = DistillationTrainer.save_model
    saved: list[str] = []
    last: list[str] = []

    def save_and_interrupt(self: DistillationTrainer) -> bool:
        done = save(self)
        saved.append(f"{self.save_dir.parent.name} {self.epoch + 1}")
        if saved[-1] in {"1-yolov8n 1", "2-yolov8n 1", "run 1"}:
            raise KeyboardInterrupt
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationTrainer, "save_model", save_and_interrupt)
        for given in ([*arguments(out), *CHAIN], *[["--resume", str(out)]] * 2):
            with redirect_stderr(io.StringIO()) as err:
                assert yolo.main(given) == 130
            last.append(err.getvalue().strip().splitlines()[-1])
        assert yolo.main(["--resume", str(out)]) == 0
    return out, saved, last


@pytest.fixture(scope="module")
def chain(broken_off: tuple[Path, list[str], list[str]]) -> Path:
    """Its folder."""
    return broken_off[0]


def test_each_step_is_a_run_taught_by_the_one_before(chain: Path, toy_teacher: Path) -> None:
    steps = [chain / "stages" / "1-yolov8n", chain / "stages" / "2-yolov8n", chain]
    assert {p.name for p in chain.iterdir()} == {"agreement.json", "recipe.json", "stages", "student", "train"}
    teachers = [file_sha256(toy_teacher), *(file_sha256(step / "student" / "student.pt") for step in steps[:2])]
    for step, teacher in zip(steps, teachers, strict=True):
        assert described(step)["teacher"]["sha256"] == teacher
        assert len((step / "train" / "results.csv").read_text().splitlines()) == 3
    assert len({file_sha256(step / "student" / "student.pt") for step in steps}) == 3


def test_the_students_record_names_the_chain(chain: Path, toy_teacher: Path) -> None:
    student = described(chain)
    assert student["teacher"]["name"] == f"{toy_teacher.name} > yolov8n > yolov8n"
    stages = [chain / "stages" / "1-yolov8n", chain / "stages" / "2-yolov8n"]
    assert [step["sha256"] for step in student["chain"]] == [
        file_sha256(stage / "student" / "student.pt") for stage in stages
    ]
    assert [step["metrics"] for step in student["chain"]] == [described(stage)["metrics"] for stage in stages]
    assert described(stages[0])["chain"] == []


def test_its_page_draws_every_assistant_and_compares_the_student_with_the_last(chain: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(chain, tmp_path / "chain"))
    (run / "agreement.json").unlink()
    assert page.main([str(run), "--images", "1"]) == 0
    titles = re.findall(r"<figcaption><b>([^<]*)</b>", (run / "page.html").read_text())
    assert titles == ["truth", "teacher", "assistant 1", "assistant 2", "student"]
    (measured,) = json.loads((run / "agreement.json").read_text())["teachers"]
    assert measured["sha256"] == file_sha256(run / "stages" / "2-yolov8n" / "student" / "student.pt")


def test_a_chain_goes_on_in_the_step_that_broke_off_and_repeats_nothing(
    broken_off: tuple[Path, list[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, saved, last = broken_off
    assert saved == [f"{step} {epoch}" for step in ("1-yolov8n", "2-yolov8n", "run") for epoch in (1, 2)]
    assert last == [
        f"interrupted in step {n} of 3 after 1 of 2 epochs: continue with python -m distill.yolo --resume {out}"
        for n in (1, 2, 3)
    ]
    assert yolo.main(["--resume", str(out)]) == 1
    assert "is finished" in capsys.readouterr().err


def test_an_assistant_that_was_changed_is_refused(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(chain, tmp_path / "run"))
    shutil.rmtree(out / "student")
    checkpoint = out / "stages" / "2-yolov8n" / "student" / "student.pt"
    checkpoint.write_bytes(checkpoint.read_bytes() + b"\0")
    for given, words in (
        (["--resume", str(out)], f"assistant {checkpoint} has SHA-256"),
        (["--resume", str(out), "--assistants", "yolov8n.yaml"], "--assistants yolov8n.yaml contradicts the run"),
    ):
        capsys.readouterr()
        assert yolo.main(given) == 1
        assert words in capsys.readouterr().err
    assert (out / "stages" / "1-yolov8n" / "student").is_dir()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--assistants", "yolov8n-p2.yaml"], "strides"),
        (["--assistants", "nowhere.yaml"], "not found"),
        (["--assistants", "yolov8n.yaml,"], "has an empty name"),
        (["--assistants", "yolov8n.yaml", "--losses", "none"], "have no teacher"),
    ],
)
def test_what_makes_no_chain_is_refused_before_anything_is_written(
    changed: list[str], words: str, arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert yolo.main([*arguments(tmp_path / "run"), *changed]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_processes_of_torchrun_are_refused(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distill.chain.RANK", 1)
    assert yolo.main([*arguments(tmp_path / "run"), *CHAIN]) == 1
    assert "not with torchrun" in capsys.readouterr().err
