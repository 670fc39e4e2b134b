"""Jobs over a Ray cluster: a training per GPU, or per machine without; one that loses its worker goes on elsewhere."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from distill.errors import DistillError
from distill.jobs import Job, Runner, run_job

__all__ = ["ray_runner"]

log = logging.getLogger(__name__)

#: How often one job may lose its worker.
_TRIES: Final = 4


def ray_runner(address: str) -> Runner:
    """A runner that spreads jobs over a Ray cluster.

    All machines must see this process's working directory, the jobs' folders, the data, the teachers and this project
    under the same paths (a shared file system): a job that lost its worker is resumed from its run folder by another
    machine, and results and logs lie where a run on this machine would have left them.

    Args:
        address: of the cluster's head, as ``host:6379`` or ``auto``; ``local`` starts a cluster of this machine.

    Raises:
        DistillError: when Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray reports usage to its makers otherwise
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a job without a GPU sees what it would have seen
    try:
        import ray
    except ModuleNotFoundError as error:
        raise DistillError("--ray needs Ray: pip install -e '.[ray]' in the checkout of edge-distill") from error
    return lambda jobs, done: _run(ray, address, jobs, done)


def _run(ray: Any, address: str, jobs: Iterable[Job], done: Callable[[Job], None]) -> None:
    """Run the jobs and call back with each that is finished; those that fail are named at the end."""
    _join(ray, address)
    try:
        share = _share(ray)
        log.info("each training gets %g CPUs and %g GPUs of %s", *share.values(), _size(ray))
        task = ray.remote(max_retries=0, max_calls=1, **share)(_run_here)
        _gather(ray, task, [replace(job, out=job.out.resolve()) for job in jobs], done)
    finally:
        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    common = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address == "local":
            ray.init(include_dashboard=False, **common)
        else:
            ray.init(address=address, **common)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DistillError(
            f"no Ray cluster at {address} ({reason}): start one with ray start --head, or give --ray local"
        ) from error


def _gather(ray: Any, task: Any, jobs: list[Job], done: Callable[[Job], None]) -> None:
    lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)
    tries = dict.fromkeys(jobs, 1)
    running = {task.remote(job, str(Path.cwd())): job for job in jobs}
    failures: list[str] = []
    while running:
        (ready, *_), _ = ray.wait(list(running), num_returns=1)
        job = running.pop(ready)
        try:
            machine = ray.get(ready)
        except lost as error:
            if tries[job] == _TRIES:
                failures.append(f"{job.name} lost its worker {_TRIES} times ({type(error).__name__})")
                continue
            tries[job] += 1
            log.warning("%s lost its worker: goes on from its last complete epoch on another", job.name)
            running[task.remote(job, str(Path.cwd()))] = job
        except ray.exceptions.RayTaskError as error:
            failures.append(" ".join(str(error.cause).split())[:400])
        else:
            log.info("%s ran on %s", job.name, machine)
            done(job)
    if failures:
        raise DistillError(f"{len(failures)} of {len(jobs)} trainings failed: {'; '.join(failures)}")


def _run_here(job: Job, folder: str) -> str:
    """Run or resume one job on the machine that Ray chose; returns its name.

    The lock keeps two apart when a machine that seemed lost was only out of reach and trains on.
    """
    os.chdir(folder)
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with job.out.with_name(f"{job.out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if job.finished() is None:
            run_job(job)
    return platform.node()


def _share(ray: Any) -> dict[str, float]:
    """What one training is given: a GPU with its share of the CPUs, or a whole machine where there are no GPUs.

    Raises:
        DistillError: when the cluster has no machine that works.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not machines:
        raise DistillError("the Ray cluster has no machine with CPUs: add one with ray start --address=HEAD:6379")
    with_gpus = [machine for machine in machines if machine.get("GPU")]
    cpus = min(machine["CPU"] // max(1.0, machine.get("GPU", 0.0)) for machine in with_gpus or machines)
    return {"num_cpus": max(1.0, cpus), "num_gpus": 1.0 if with_gpus else 0.0}


def _size(ray: Any) -> str:
    machines = [node for node in ray.nodes() if node["Alive"]]
    resources = ray.cluster_resources()
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs on {len(machines)} machines"
