"""One bundle's soak: frames through the stream, with memory, latency and results watched."""

from __future__ import annotations

import math
import resource
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from deploy.bundle import Bundle
from deploy.cli import log
from deploy.runtime import Detections, Detector
from deploy.runtime.sources import ImageFiles
from deploy.runtime.stream import FailedFrame, Stream
from deploy.runtime.stream_stats import StreamStats

MEGABYTE = 1024 * 1024
_MEMORY_SAMPLES = 500
# What counts for nothing at the start, while engines and allocators settle: a tenth of the frames, at least so many.
_WARM_UP, _LEAST_WARM_UP_FRAMES = 0.1, 500


@dataclass(frozen=True)
class SoakJob:
    """What to run.

    Attributes:
        bundle: a detector's bundle folder.
        images: go round and round.
        frames: in all.
        threads: of one inference.
    """

    bundle: Path
    images: tuple[Path, ...]
    frames: int
    threads: int


@dataclass(frozen=True)
class Soak:
    """What came of it.

    Attributes:
        job: what was run.
        name: engine and precision.
        imgsz: rows and columns of the network's input.
        facts: of the engine.
        stats: of the stream.
        latencies_s: (processed,) float64, from a frame's capture to its result, in order.
        memory_frames: (samples,) int64, results handed out when memory was sampled.
        memory_bytes: (samples,) float64, resident memory then.
        changed_results: detections that were not those of the image's first time.
        detections: found in the first round.
    """

    job: SoakJob
    name: str
    imgsz: tuple[int, int]
    facts: Mapping[str, Any]
    stats: StreamStats
    latencies_s: NDArray[np.float64]
    memory_frames: NDArray[np.int64]
    memory_bytes: NDArray[np.float64]
    changed_results: int
    detections: int

    @property
    def measured_frames(self) -> int:
        """Frames after the start, over which growth is measured; 0 where the run is too short to tell."""
        return max(0, self.job.frames - self._warm_up_frames)

    @property
    def growth_bytes_per_frame(self) -> float:
        """Slope of a least-squares line through resident memory over frames, the start left out; NaN if too short."""
        kept = self.memory_frames >= self._warm_up_frames
        if kept.sum() < 2:
            return math.nan
        frames = self.memory_frames[kept] - self.memory_frames[kept].mean()
        return float(frames @ (self.memory_bytes[kept] - self.memory_bytes[kept].mean()) / (frames @ frames))

    @property
    def settled_bytes(self) -> float:
        """Resident memory after the start, or at the end of a shorter run."""
        after = self.memory_bytes[self.memory_frames >= self._warm_up_frames]
        return float(after[0] if len(after) else self.memory_bytes[-1])

    @property
    def _warm_up_frames(self) -> int:
        return max(_LEAST_WARM_UP_FRAMES, round(_WARM_UP * self.job.frames))

    def windows_s(self, count: int = 10) -> list[NDArray[np.float64]]:
        """The latencies in so many parts of equal length, in order."""
        return [np.asarray(part, np.float64) for part in np.array_split(self.latencies_s, count)]

    @property
    def drift(self) -> float:
        """Median latency of the last tenth over that of the first."""
        windows = self.windows_s()
        return float(np.median(windows[-1]) / np.median(windows[0])) if len(windows[0]) else float("nan")


def run_soak(job: SoakJob) -> Soak:
    """Run a soak in this process.

    Raises:
        BenchError: the bundle is no detector's.
        DeployError: the bundle or its engine cannot be used.
    """
    bundle = Bundle.open(job.bundle)
    if bundle.manifest.task != "detect":
        raise BenchError(f"{job.bundle} is of task {bundle.manifest.task!r}, expected 'detect'")
    detector = Detector(bundle, threads=job.threads)
    count = len(job.images)
    source = ImageFiles([job.images[index % count] for index in range(job.frames)])
    # All memory is taken, and touched, before the first sample.
    latencies_s = np.full(job.frames, -1.0)
    checksums = np.full(count, -1, np.int64)
    memory = np.full((_MEMORY_SAMPLES + 2, 2), -1.0)
    every, samples, changed, found, processed = math.ceil(job.frames / _MEMORY_SAMPLES), 0, 0, 0, 0
    stream = Stream(detector, source, on_failed=_tell)
    for frame, detections in stream:
        latencies_s[processed] = time.perf_counter() - frame.captured_s
        image, checksum = frame.index % count, _checksum(detections)
        if checksums[image] < 0:
            checksums[image] = checksum
            found += len(detections)
        changed += int(checksums[image] != checksum)
        processed += 1
        if processed % every == 0 or processed == 1:
            memory[samples] = processed, resident_bytes()
            samples += 1
        if processed % max(1, job.frames // 10) == 0:
            log(f"  {processed} of {job.frames}: {resident_bytes() / MEGABYTE:.1f} MB")
    if not samples:
        memory[0], samples = (0, resident_bytes()), 1
    facts = dict(detector.engine.facts())
    detector.close()
    spec = bundle.manifest.input
    return Soak(
        job=job,
        name=f"{bundle.manifest.engine} {bundle.manifest.precision.upper()}",
        imgsz=(spec.height, spec.width),
        facts=facts,
        stats=stream.stats(),
        latencies_s=latencies_s[:processed].copy(),
        memory_frames=memory[:samples, 0].astype(np.int64),
        memory_bytes=memory[:samples, 1].copy(),
        changed_results=changed,
        detections=found,
    )


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Memory this process has resident now.

    Raises:
        BenchError: the system does not tell it, as any but Linux.
    """
    try:
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    except OSError as error:
        raise BenchError(f"{statm} cannot be read ({error}): a soak needs Linux") from error


def _checksum(detections: Detections) -> int:
    """CRC-32 of boxes, scores and classes, to the bit."""
    checksum = 0
    for array in (detections.boxes_xyxy, detections.scores, detections.class_ids):
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum


def _tell(failed: FailedFrame) -> None:
    log(f"frame {failed.index} failed: {failed.error}")
