"""Jobs on a Ray cluster of two workers on this machine, one of which is killed. Skips where Ray is not installed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from distill.cluster import ray_runner  # noqa: E402
from distill.errors import DistillError  # noqa: E402
from distill.jobs import Job  # noqa: E402

#: Stands for a training: leaves a state, waits until it is let go, and finishes at once when resumed.
TRAINING = """
import json, os, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--resume" if "--resume" in sys.argv else "--out") + 1])
if "fail" in sys.argv:
    print("error: no such teacher")
    raise SystemExit(1)
(out / "train" / "weights").mkdir(parents=True, exist_ok=True)
(out / "train" / "weights" / "state.pt").touch()
(out / ("resumed" if "--resume" in sys.argv else "begun")).write_text(str(os.getpid()))
deadline = time.monotonic() + 100
while "--resume" not in sys.argv and not (out.parent / "go").exists() and time.monotonic() < deadline:
    time.sleep(0.05)
(out / "student").mkdir()
(out / "student" / "student.json").write_text(json.dumps({"name": out.name}))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that does not work and two workers of one CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        small = {"object_store_memory": 80 << 20, "include_dashboard": False}
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        for _ in range(2):
            started.add_node(num_cpus=1, object_store_memory=80 << 20)
        yield started
        started.shutdown()


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Two stand-ins for trainings, importable by the jobs' processes."""
    (tmp_path / "stand_in.py").write_text(TRAINING)
    monkeypatch.chdir(tmp_path)
    return [Job(name, "stand_in", (), Path("runs") / name) for name in ("one", "two")]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def test_a_job_whose_worker_is_killed_is_resumed_on_the_other(cluster: Any, jobs: list[Job]) -> None:
    finished: list[str] = []
    runner = ray_runner(cluster.address)
    thread = threading.Thread(target=runner, args=(jobs, lambda job: finished.append(job.name)))
    thread.start()
    for job in jobs:  # both at once: one on each worker
        wait_for(job.out / "begun")
    training = int((jobs[0].out / "begun").read_text())
    worker = cluster.worker_nodes
    raylet = parent(parent(training))
    (killed,) = [node for node in worker if node.all_processes["raylet"][0].process.pid == raylet]
    cluster.remove_node(killed, allow_graceful=False)
    wait_until_gone(training)
    (Path("runs") / "go").touch()
    thread.join(150)
    assert not thread.is_alive()
    assert sorted(finished) == ["one", "two"]
    assert (jobs[0].out / "resumed").exists()
    assert not (jobs[1].out / "resumed").exists()
    assert json.loads((jobs[0].out / "student" / "student.json").read_text()) == {"name": "one"}


def test_a_failed_job_is_named_and_the_others_are_done(cluster: Any, jobs: list[Job]) -> None:
    Path("runs").mkdir()
    (Path("runs") / "go").touch()
    finished: list[str] = []
    bad = Job("bad", "stand_in", ("fail",), Path("runs/bad"))
    with pytest.raises(DistillError, match="1 of 3 trainings failed: bad failed with exit code 1: error: no such"):
        ray_runner(cluster.address)([bad, *jobs], lambda job: finished.append(job.name))
    assert sorted(finished) == ["one", "two"]
    assert "no such teacher" in Path("runs/bad.log").read_text()


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


def wait_until_gone(process: int) -> None:
    """The training of a killed worker must end with it, or two would write into one folder."""
    deadline = time.monotonic() + 30
    while Path(f"/proc/{process}").exists():
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            pytest.fail("the training outlived its worker")
        time.sleep(0.05)
