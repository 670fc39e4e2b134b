"""What `make test` promises: it reaches every test file once, and its end says what failed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# What a make around this one hands down, and what a user may have set.
_HANDED_DOWN = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "TESTS", "ARGS", "VENV")

MakeTest = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make: apt-get install make")


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _HANDED_DOWN}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def make_test(tmp_path_factory: pytest.TempPathFactory) -> MakeTest:
    """Runs the Makefile's test target where part `good` passes, `bad` fails, `dead` dies and `none` has no test."""
    root = tmp_path_factory.mktemp("parts")
    shutil.copy(REPOSITORY / "Makefile", root)
    (root / "tests").mkdir()
    shutil.copy(REPOSITORY / "tests" / "run_parts.py", root / "tests")
    for name in ("pyproject.toml", "constraints.txt"):
        (root / name).touch()
    python = root / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (root / "venv" / ".edge-distill-ready").touch()
    for part, body in (("good", "pass"), ("bad", "raise ValueError"), ("dead", "__import__('os').abort()")):
        (root / part).mkdir()
        (root / part / f"test_{part}.py").write_text(f"def test_{part}():\n    {body}\n")
    (root / "none").mkdir()

    def run(parts: str, selecting: str = "") -> subprocess.CompletedProcess[str]:
        return _make(root, "test", "VENV=venv", f"TESTS={parts}", f"ARGS={selecting}")

    return run


def test_every_test_file_is_in_one_part() -> None:
    done = _make(REPOSITORY, "--silent", "parts")
    assert done.returncode == 0, done.stderr
    parts = [REPOSITORY / line for line in done.stdout.split()]
    files = [file for pattern in ("test_*.py", "*_test.py") for file in (REPOSITORY / "tests").rglob(pattern)]
    assert len(files) > 50
    reached = {str(file): sum(part in (file, *file.parents) for part in parts) for file in files}
    assert {file: times for file, times in reached.items() if times != 1} == {}


def test_the_end_names_the_parts_that_failed_and_how(make_test: MakeTest) -> None:
    done = make_test("bad dead good")
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1] == "=== parts that ran: 3, parts where ARGS selects nothing: 0"
    assert "error: failed parts:\n  bad (exit code 1)\n  dead (exit code 134)\n" in done.stderr


def test_all_passing_parts_pass(make_test: MakeTest) -> None:
    done = make_test("good good")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_part_where_nothing_is_selected_is_no_failure(make_test: MakeTest) -> None:
    done = make_test("bad good", "-k 'good or nowhere'")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "=== parts that ran: 1, parts where ARGS selects nothing: 1"


def test_nothing_selected_in_any_part_is_one(make_test: MakeTest) -> None:
    done = make_test("bad good", "-k nowhere")
    assert done.returncode != 0
    assert "error: no part has a test that ARGS selects" in done.stderr


@pytest.mark.parametrize(("part", "code"), [("none", 5), ("missing", 4)])
def test_a_part_without_tests_or_that_is_not_there_fails(make_test: MakeTest, part: str, code: int) -> None:
    done = make_test(f"good {part}")
    assert done.returncode != 0
    assert f"  {part} (exit code {code})\n" in done.stderr
