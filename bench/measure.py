"""The worker: measures one bundle in this process, which must be a fresh one, on the device itself.

    python -m bench.measure JOB.json      (or -: the job on stdin, and an end as soon as stdin ends)

It writes lines of JSON to stdout: one `measurement`, one `detections` (of a classifier: `classes`) per image of the
accuracy pass, one `audit` of what the engine executed, one `end`. The lines `progress STAGE PERCENT` on stderr are for
whoever watches. `bench.run` starts it; by hand it works as well.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # started by its path, as on a device: import from the folder above
    from pathlib import Path as _Path

    sys.path[0] = str(_Path(__file__).resolve().parent.parent)

import argparse
import importlib.metadata
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bench.attended import alone, end_with_stdin, line_of_stdin
from bench.errors import BenchError
from bench.machine import affinity, machine_facts, machine_state, peak_rss_bytes, rss_bytes
from bench.monitor import Monitor
from bench.stages import Stages, accuracy_settings, recorder, timed_stages
from bench.throughput import measure_throughput
from bench.wire import decode_detections, encode_detections
from deploy.bundle import Bundle, Manifest
from deploy.cli import log, one_line, run_command
from deploy.errors import DeployError
from deploy.runtime import Engine, default_threads, load_engine, read_image
from deploy.runtime.audit import audit_record, executed
from deploy.runtime.options import OPTIONS

__all__ = ["STAGES", "Job", "decode_detections", "encode_detections", "main", "measure"]

STAGES = ("preprocess", "inference", "postprocess")

# Decoded images kept in memory for the timed loop: few, because they count in the peak memory that is measured.
_KEPT_IMAGES = 8
_KEPT_BYTES = 32_000_000

_AUDIT_RUNS = 3  # enough for shares of the time; a slow device needs seconds for each
_PROGRESS_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Job:
    """What to measure; every path is one of the machine that measures.

    Attributes:
        bundle: bundle folder.
        images: image files, in data set order.
        threads: for one inference; None for all processors this process may use.
        warmup: calls that are not counted.
        samples: timed images, at least.
        min_seconds: duration of the timed loop, at least.
        accuracy: whether to run all images, a detector at a low score threshold, and give back what was found.
        model_cache: whether the engine may keep the opened model on disk, and find it there. Loading is then faster
            and needs less memory, but only the second time: without it every run is a first one.
        streams: so many images at a time in the throughput scenario, after all else that is timed; 0 leaves it out.
        meter: file of an energy meter, see `bench.energy.find_meters`.
        host_silence_s: end after so long without a byte on stdin, as whoever watches is cut off then; None where
            nobody promised to write.
        lock: file that one worker at a time holds while it measures; None leaves out the waiting.
    """

    bundle: str
    images: tuple[str, ...]
    threads: int | None = None
    warmup: int = 10
    samples: int = 100
    min_seconds: float = 5.0
    accuracy: bool = True
    model_cache: bool = False
    streams: int = 0
    meter: str | None = None
    host_silence_s: float | None = None
    lock: str | None = None

    def to_json(self) -> str:
        """The job on one line."""
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)})

    @staticmethod
    def from_json(text: str, source: str) -> Job:
        """Read a job; `source` names it in errors.

        Raises:
            BenchError: not JSON, an unknown or missing field, no image, or counts below 1.
        """
        try:
            given = json.loads(text)
            job = Job(**{**given, "images": tuple(given["images"])})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            known = ", ".join(field.name for field in fields(Job))
            raise BenchError(f"{source} is no job ({error}): expected JSON with {known}") from error
        if not job.images or job.samples < 1 or job.warmup < 0 or job.streams < 0:
            raise BenchError(f"{source} asks for {job.samples} samples of {len(job.images)} images: at least 1 of each")
        return job


Emit = Callable[[Mapping[str, Any]], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.measure", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", metavar="JOB.json", help="the job, or - for one line of it on stdin")
    arguments = parser.parse_args(argv)
    return run_command(lambda: _serve(arguments.job), BenchError)


def measure(job: Job, emit: Emit) -> None:
    """Measure one bundle and give every record to `emit`, in the order described at the head of this file.

    Raises:
        DeployError: the bundle, its engine or an image cannot be used.
    """
    bundle = Bundle.open(job.bundle)
    threads = job.threads or default_threads()
    images = _kept_images(job.images)
    before = machine_state()
    memory = {"before_load_bytes": rss_bytes()}

    started = time.perf_counter()
    engine = load_engine(bundle, threads, _engine_options(job, bundle.manifest))
    load_s = time.perf_counter() - started
    memory["after_load_bytes"] = rss_bytes()

    stages = timed_stages(engine, bundle.manifest)
    first_inference_s = _timed(stages, images[0])[1]
    warmup_s = [sum(_timed(stages, images[index % len(images)])) for index in range(job.warmup)]
    memory["warm_bytes"] = rss_bytes()
    with Monitor(job.meter) as monitor:
        samples = _timed_loop(stages, images, job)
    peak = peak_rss_bytes()  # before the accuracy pass, whose many images are no part of the deployed program
    after = machine_state()
    scored = dict(accuracy_settings(bundle.manifest)) if job.accuracy else None
    settings = {**stages.settings, "accuracy": scored}
    emit(
        {
            "kind": "measurement",
            "load_s": load_s,
            "first_inference_s": first_inference_s,
            "latency": {f"{name}_s": [sample[index] for sample in samples] for index, name in enumerate(STAGES)},
            "peak_rss_bytes": peak,
            "memory": memory,
            "cpu": monitor.cpu,
            "energy": monitor.energy,
            "throughput": _throughput(bundle, images, job, threads),
            "machine": {**machine_facts(), "before": before, "during": monitor.during, "after": after},
            "executed": dict(engine.facts()),
            "tools": _tools(engine.facts()),
            "protocol": _protocol(job, threads, settings, images, len(samples)) | {"warmup_s": warmup_s},
        }
    )
    if job.accuracy:
        _accuracy_pass(engine, bundle.manifest, job.images, emit)
    engine.close()
    emit({"kind": "audit", "audit": _audit(bundle, threads)})
    emit({"kind": "end", "images": len(job.images) if job.accuracy else 0})


def _throughput(bundle: Bundle, images: Sequence[NDArray[np.uint8]], job: Job, threads: int) -> dict[str, Any] | None:
    if not job.streams:
        return None
    options, share = _engine_options(job, bundle.manifest), _Progress("throughput").show
    return measure_throughput(bundle, images, job.streams, threads, job.samples, job.min_seconds, options, share)


def _audit(bundle: Bundle, threads: int) -> dict[str, Any]:
    """What the engine executed, or why it does not tell; last of all, as the model is opened once more for it."""
    try:
        return audit_record(bundle, threads, executed(bundle, threads, runs=_AUDIT_RUNS))
    except DeployError as error:
        return {"error": one_line(error)}


def _engine_options(job: Job, manifest: Manifest) -> dict[str, bool]:
    """What to set before all that the manifest says."""
    return {"model_cache": False} if not job.model_cache and "model_cache" in OPTIONS[manifest.engine] else {}


def _protocol(
    job: Job, threads: int, settings: Mapping[str, Any], images: Sequence[NDArray[np.uint8]], samples: int
) -> dict[str, Any]:
    return {
        "threads": threads,
        "affinity": affinity(),
        "warmup": job.warmup,
        "samples": samples,
        "min_samples": job.samples,
        "min_seconds": job.min_seconds,
        **settings,
        "timed_images": len(images),
        "timed_images_bytes": sum(image.nbytes for image in images),
    }


def _accuracy_pass(engine: Engine, manifest: Manifest, images: Sequence[str], emit: Emit) -> None:
    record = recorder(engine, manifest)
    progress = _Progress("accuracy")
    for index, path in enumerate(images):
        emit(record(index, path))
        progress.show((index + 1) / len(images))


def _timed(stages: Stages, image: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Seconds of each of `STAGES` for one image."""
    start = time.perf_counter()
    pixels, *rest = stages.preprocess(image)
    fitted = time.perf_counter()
    outputs = stages.run(pixels)
    inferred = time.perf_counter()
    stages.postprocess(outputs, *rest)
    done = time.perf_counter()
    return fitted - start, inferred - fitted, done - inferred


def _timed_loop(stages: Stages, images: Sequence[NDArray[np.uint8]], job: Job) -> list[tuple[float, float, float]]:
    samples: list[tuple[float, float, float]] = []
    progress = _Progress("timing")
    started = time.perf_counter()
    elapsed_s = 0.0
    while len(samples) < job.samples or elapsed_s < job.min_seconds:
        samples.append(_timed(stages, images[len(samples) % len(images)]))
        elapsed_s = time.perf_counter() - started
        by_time = elapsed_s / job.min_seconds if job.min_seconds > 0 else 1.0
        progress.show(min(len(samples) / job.samples, by_time))
    return samples


def _kept_images(paths: Sequence[str]) -> list[NDArray[np.uint8]]:
    """Some images, spread evenly over the set and decoded; always the same ones for the same set."""
    count = min(_KEPT_IMAGES, len(paths))
    kept: list[NDArray[np.uint8]] = []
    for index in range(count):
        image = read_image(paths[index * len(paths) // count])
        if kept and sum(other.nbytes for other in kept) + image.nbytes > _KEPT_BYTES:
            break
        kept.append(image)
    return kept


def _tools(executed: Mapping[str, Any]) -> dict[str, str]:
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": importlib.metadata.version("pillow"),
        str(executed.get("library", "engine")): str(executed.get("version", "unknown")),
    }
    if "cv2" in sys.modules:  # where OpenCV is installed it does the resizing, and counts in the memory
        versions["opencv"] = str(sys.modules["cv2"].__version__)
    return versions


def _serve(source: str) -> int:
    output = _claimed_stdout()
    if source == "-":
        job = Job.from_json(line_of_stdin(), "stdin")
        threading.Thread(target=end_with_stdin, args=(job.host_silence_s,), daemon=True).start()
    else:
        # What is no text becomes characters that no JSON begins with, and is refused as such.
        job = Job.from_json(Path(source).read_text(encoding="utf-8", errors="replace"), source)

    def emit(record: Mapping[str, Any]) -> None:
        output.write(json.dumps(record) + "\n")

    with alone(job.lock):
        measure(job, emit)
    output.flush()
    return 0


def _claimed_stdout() -> IO[str]:
    """Stdout for the records alone: whatever a runtime prints goes to stderr from now on."""
    claimed = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    return claimed


class _Progress:
    """Lines `progress STAGE PERCENT`, not so many that they would disturb what is measured."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._shown_at = -_PROGRESS_INTERVAL_S

    def show(self, fraction: float) -> None:
        now = time.monotonic()
        if now - self._shown_at >= _PROGRESS_INTERVAL_S or fraction >= 1.0:
            self._shown_at = now
            log(f"progress {self._stage} {min(1.0, fraction):.0%}")


if __name__ == "__main__":
    sys.exit(main())
