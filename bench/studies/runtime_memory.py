"""Memory and start-up: fresh processes that load a model and detect in image files."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.studies.runtime_process import WorkerProcess
from deploy.cli import log

# Most memory of a process with an INT8 bundle at 640 px, in bytes (1 MB = 10^6 bytes).
MEMORY_TARGETS: Mapping[str, int] = {"tflite": 110_000_000, "onnx": 120_000_000, "openvino": 200_000_000}
MEMORY_TARGET_IMGSZ = 640
MEMORY_IMAGES = 100

IMPORT_TARGET_S = 0.3
_IMPORT_PROCESSES = 10
_IMPORT = "import time; s = time.perf_counter(); import deploy.runtime; print(time.perf_counter() - s)"


@dataclass(frozen=True)
class Memory:
    """Peak memory of one contender.

    Attributes:
        name: who.
        imgsz: side of the input in pixels.
        engine: which runtime.
        peak_rss_bytes: VmHWM after the last image.
        opencv: whether OpenCV had been imported by then.
        failure: why it could not be measured.
    """

    name: str
    imgsz: int
    engine: str
    peak_rss_bytes: int = 0
    opencv: bool = False
    failure: str = ""


def measure_memory(
    name: str, imgsz: int, engine: str, request: Mapping[str, Any], images: Sequence[str], log_file: Path
) -> Memory:
    """Peak memory of a fresh process that opens a contender and detects in `MEMORY_IMAGES` files."""
    log(f"memory: {name} {engine} {imgsz} px")
    try:
        with WorkerProcess(name, {**request, "images": list(images)}, log_file) as worker:
            answer = worker.ask({"do": "files", "count": MEMORY_IMAGES})
    except BenchError as error:
        return Memory(name, imgsz, engine, failure=str(error))
    return Memory(name, imgsz, engine, int(answer["peak_rss_bytes"]), bool(answer["opencv"]))


def import_times_s() -> list[float]:
    """Seconds that `import deploy.runtime` takes, each in a fresh process.

    Raises:
        BenchError: it cannot be imported.
    """
    log("import deploy.runtime")
    times = []
    for _ in range(_IMPORT_PROCESSES):
        done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"import deploy.runtime fails: {' '.join(done.stderr.split())[-300:]}")
        times.append(float(done.stdout))
    return times


def median_s(times: Sequence[float]) -> float:
    """Median of at least one time."""
    return statistics.median(times)
