"""Finding a student, and refusing one that is not what its record says."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from deploy.errors import StudentError
from deploy.student import find_student

CONTENT = b"weights"


def _student(folder: Path, age_s: float = 0.0, **changes: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "student.pt").write_bytes(CONTENT)
    record = {
        "schema": 1,
        "student": {"file": "student.pt", "sha256": hashlib.sha256(CONTENT).hexdigest()},
        "teacher": {"file": "yolov8x.pt", "sha256": "ab", "parameters": 7},
        "data": {"yaml": "/data/cells.yaml"},
        "imgsz": 320,
        "losses": {"ld": 0.25},
        **changes,
    }
    path = folder / "student.json"
    path.write_text(json.dumps(record))
    os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    return folder


def test_the_newest_student_is_the_default(tmp_path: Path) -> None:
    _student(tmp_path / "distill/old/student", age_s=100)
    _student(tmp_path / "distill/new/student")
    _student(tmp_path / "distill/.unfinished.partial-1", age_s=-100)
    _student(tmp_path / "distill/chain/stages/1-yolov8m/student", age_s=-100)  # an assistant of a chain
    assert find_student(None, tmp_path).name == "new"


@pytest.mark.parametrize("given", ["run", "run/student", "run/student/student.json", "run/student/student.pt"])
def test_a_run_is_found_by_its_folder_its_student_its_record_or_its_checkpoint(tmp_path: Path, given: str) -> None:
    _student(tmp_path / "run/student")
    student = find_student(tmp_path / given)
    assert (student.name, student.imgsz, student.data_yaml) == ("run", 320, Path("/data/cells.yaml"))
    assert student.checkpoint == tmp_path / "run/student/student.pt"
    assert student.sha256 == hashlib.sha256(CONTENT).hexdigest()


def test_a_manifest_tells_where_a_student_came_from(tmp_path: Path) -> None:
    origin = find_student(_student(tmp_path / "run/student")).origin(parameters=42)
    assert origin["teacher"] == {"file": "yolov8x.pt", "sha256": "ab"}
    assert (origin["name"], origin["parameters"], origin["losses"]) == ("run", 42, {"ld": 0.25})


def test_a_plain_student_has_no_teacher(tmp_path: Path) -> None:
    assert find_student(_student(tmp_path / "run/student", teacher=None)).origin(1)["teacher"] is None


def test_a_bare_checkpoint_is_named_after_its_file_and_knows_nothing_else(tmp_path: Path) -> None:
    _student(tmp_path / "run/student")
    (tmp_path / "run/student/best.pt").write_bytes(b"others")  # the record beside it is of student.pt
    student = find_student(tmp_path / "run/student/best.pt")
    assert (student.name, student.imgsz, student.data_yaml, dict(student.record)) == ("best", None, None, {})


def test_no_student_at_all_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match=r"python -m distill\.yolo"):
        find_student(None, tmp_path / "runs")


def test_a_folder_without_a_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match=r"holds no student\.json"):
        find_student(tmp_path)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="no student"):
        find_student(tmp_path / "nothing.pt")


def test_a_changed_checkpoint_is_refused_with_both_hashes(tmp_path: Path) -> None:
    folder = _student(tmp_path / "run/student")
    (folder / "student.pt").write_bytes(b"weightz")
    with pytest.raises(StudentError, match=rf"{hashlib.sha256(b'weightz').hexdigest()[:12]}.*the file was changed"):
        find_student(folder)


def test_a_record_without_its_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = _student(tmp_path / "run/student")
    (folder / "student.pt").unlink()
    with pytest.raises(StudentError, match=r"names student\.pt, which is not beside it"):
        find_student(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("[]", "schema 'list'"),
        ('{"schema": 9}', "schema 9, this version reads 1"),
        ('{"schema": 1}', "names no student file"),
        ('{"schema": 1, "student": {"file": 3}}', "names no student file"),
        ('{"schema": 1, "student": {"file": "../../other.pt"}}', "expected a plain file name"),
        ('{"schema": 1, "student": {"file": "student.pt"}, "data": "x"}', "data 'x', expected an object"),
        ('{"schema": 1, "student": {"file": "student.pt"}, "data": {"yaml": 5}}', "data.yaml 5, expected a text"),
        ('{"schema": 1, "student": {"file": "student.pt"}, "teacher": "t"}', "teacher 't', expected an object"),
        ('{"schema": 1, "student": {"file": "student.pt", "sha256": 7}}', "student.sha256 7, expected a text"),
    ],
)
def test_a_record_that_cannot_be_used_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    folder = _student(tmp_path / "run/student")
    (folder / "student.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StudentError, match=reason):
        find_student(folder)
