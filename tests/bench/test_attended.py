"""A worker ends with its host however it went, and workers on one machine take turns."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.attended import HOST_GONE_EXIT_CODE
from bench.measure import Job

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = [sys.executable, str(REPOSITORY / "bench" / "measure.py"), "-"]


@pytest.fixture
def job(tiny_bundle: Path, tiny_data: Path) -> Job:
    """Of ten minutes."""
    image = str(tiny_data.parent / "images" / "val" / "plain.png")
    return Job(str(tiny_bundle), (image,), threads=1, min_seconds=600, accuracy=False)


def test_a_worker_ends_when_its_host_falls_silent(job: Job) -> None:
    with _worker(job, host_silence_s=0.6) as worker:
        assert worker.wait(30) == HOST_GONE_EXIT_CODE


def test_a_worker_goes_on_as_long_as_its_host_is_heard(job: Job) -> None:
    with _worker(job, host_silence_s=0.6) as worker:
        assert worker.stdin is not None
        for _ in range(20):
            worker.stdin.write(b"\n")
            worker.stdin.flush()
            time.sleep(0.1)
            assert worker.poll() is None
        worker.stdin.close()
        assert worker.wait(30) == HOST_GONE_EXIT_CODE


def test_workers_take_turns(job: Job, tmp_path: Path) -> None:
    lock = tmp_path / "measuring.lock"
    with lock.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with _worker(job, lock=str(lock)) as worker:
            assert worker.stderr is not None
            assert worker.stderr.readline() == b"progress waiting-for-another-bench\n"
            fcntl.flock(other, fcntl.LOCK_UN)
            while not (line := worker.stderr.readline()).startswith(b"progress timing"):
                assert line.startswith(b"progress waiting")
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            worker.kill()
            worker.wait()
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of, however it ended


def test_where_no_lock_can_be_made_it_measures_all_the_same(job: Job, tmp_path: Path) -> None:
    with _worker(job, lock=str(tmp_path / "none" / "lock")) as worker:
        assert worker.stderr is not None
        assert worker.stderr.readline().startswith(b"progress timing")


@contextmanager
def _worker(job: Job, **fields: object) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        try:
            worker.stdin.write(Job(**{**vars(job), **fields}).to_json().encode() + b"\n")  # type: ignore[arg-type]
            worker.stdin.flush()
            yield worker
        finally:
            worker.kill()
