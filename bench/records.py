"""What a measurement leaves behind: raw samples and the facts needed to trust them, never only a mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.statistics import latency_intervals

RESULT_NAME = "result.json"
DETECTIONS_NAME = "detections.npz"
CLASSES_NAME = "classes.npz"
SCHEMA = 3
_READ_SCHEMAS = (1, 2, 3)  # 1 knew detectors alone; 3 adds memory, CPU time, energy and throughput


@dataclass(frozen=True)
class Latency:
    """Raw samples of the timed loop, one entry per image, in seconds, in the order they were taken.

    Attributes:
        preprocess_s: decoded image to network input (letterbox, or resize and crop).
        inference_s: the engine call, from that to raw outputs in the engine's own memory.
        postprocess_s: those to detections in source pixels (decode, NMS), with masks of a segmenter, or to classes.
    """

    preprocess_s: tuple[float, ...]
    inference_s: tuple[float, ...]
    postprocess_s: tuple[float, ...]

    def total_s(self) -> tuple[float, ...]:
        """Sum of the three stages per image."""
        stages = zip(self.preprocess_s, self.inference_s, self.postprocess_s, strict=True)
        return tuple(sum(stage) for stage in stages)

    def percentiles_s(self, samples: Sequence[float]) -> dict[str, float]:
        """p50, p90 and p99 of `samples` in seconds, linear interpolation."""
        p50, p90, p99 = np.percentile(np.asarray(samples, np.float64), [50, 90, 99])
        return {"p50": float(p50), "p90": float(p90), "p99": float(p99)}

    @property
    def fps(self) -> float:
        """Images per second of the loop preprocess, inference, postprocess: count over total time."""
        total = self.total_s()
        return len(total) / sum(total)


@dataclass(frozen=True)
class Accuracy:
    """COCO metrics of the detections that the device itself made.

    Attributes:
        map50_95: mean AP over IoU 0.50:0.05:0.95, 0..1.
        map50: mean AP at IoU 0.50, 0..1.
        per_class: class name to AP50-95, classes without truth left out.
        images: how many images.
        dataset: name of the data set, e.g. "bccd/val".
        dataset_sha256: hash of its images and labels.
    """

    map50_95: float
    map50: float
    per_class: Mapping[str, float]
    images: int
    dataset: str
    dataset_sha256: str


@dataclass(frozen=True)
class TopAccuracy:
    """Accuracy of the classes that the device itself named.

    Attributes:
        top1: part of the images whose class was the likeliest one, 0..1.
        top5: part of the images whose class was among the five likeliest, 0..1.
        per_class: class name to `top1` of its images, classes without images left out.
        images: how many images.
        dataset: name of the data set, e.g. "cifar10/test".
        dataset_sha256: hash of its images and labels.
    """

    top1: float
    top5: float
    per_class: Mapping[str, float]
    images: int
    dataset: str
    dataset_sha256: str


@dataclass(frozen=True)
class Result:
    """One bundle measured on one device.

    Attributes:
        bundle: name, sha256, task (from schema 2 on), engine, precision, imgsz (height, width), size_bytes, student
            (the manifest's).
        device: name the user gave, "local" for this machine.
        machine: facts of the machine (see `bench.machine`).
        protocol: threads, warmup, warmup_s (seconds of each uncounted image), samples, thresholds, the timed images,
            the data and the command.
        load_s: opening the model in a fresh process.
        first_inference_s: the first call after loading.
        latency: raw samples after the warm-up.
        peak_rss_bytes: peak resident set of the process (VmHWM) after the timed loop, before the accuracy pass.
        accuracy: of a detector or segmenter its boxes', of a classifier its classes'; None where no labelled data was
            given.
        executed: what the engine says it ran (library, version, inference precision, threads…), and the `audit` of
            its operators (`deploy.runtime.audit.audit_record`; absent from older results, an `error` where the engine
            does not tell).
        tools: versions on the device (python, numpy, engine).
        created: UTC time, ISO 8601.
        memory: resident bytes of the process `before_load_bytes`, `after_load_bytes` (the engine, its model and its
            arena are what lies between) and `warm_bytes`, before the timed loop; empty in older results, as `cpu`.
        cpu: `user_s` and `system_s` of the process over the timed loop, all threads together, and its `wall_s`.
        energy: over the timed loop, see `bench.energy.EnergyCount.record`; None without a meter.
        throughput: of several streams at once, see `bench.throughput.measure_throughput`; None if not asked for.
    """

    bundle: Mapping[str, Any]
    device: str
    machine: Mapping[str, Any]
    protocol: Mapping[str, Any]
    load_s: float
    first_inference_s: float
    latency: Latency
    peak_rss_bytes: int
    created: str
    accuracy: Accuracy | TopAccuracy | None = None
    executed: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    memory: Mapping[str, int | None] = field(default_factory=dict)
    cpu: Mapping[str, float] = field(default_factory=dict)
    energy: Mapping[str, Any] | None = None
    throughput: Mapping[str, Any] | None = None
    schema: int = SCHEMA

    @property
    def joules_per_image(self) -> float | None:
        """Energy of one image of the timed loop; None without a meter."""
        return None if self.energy is None else float(self.energy["joules"]) / len(self.latency.inference_s)

    @property
    def cpu_s_per_image(self) -> float | None:
        """Processor time of one image of the timed loop, all threads together; None in older results."""
        return (self.cpu["user_s"] + self.cpu["system_s"]) / len(self.latency.inference_s) if self.cpu else None

    def to_json(self) -> str:
        """The text of `result.json`: every field, with a derived `summary` for readers without this code."""
        fields = asdict(self)
        fields["summary"] = self.summary() | {
            "total_interval_s": self._intervals(),
            "cpu_s_per_image": self.cpu_s_per_image,
            "joules_per_image": self.joules_per_image,
        }
        return json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def _intervals(self) -> dict[str, list[float | None]]:
        """The 95 % interval of p50, p90 and p99 of the whole time, lower and upper end; None where so few give none."""
        cycle = int(self.protocol.get("timed_images") or 1)
        found = latency_intervals(self.latency.total_s(), cycle)
        return {name: [estimate.low, estimate.high] for name, estimate in found.items()}

    def summary(self) -> dict[str, Any]:
        """Derived figures: percentiles per stage (seconds) and images per second."""
        latency = self.latency
        return {
            "fps": latency.fps,
            "total_s": latency.percentiles_s(latency.total_s()),
            "preprocess_s": latency.percentiles_s(latency.preprocess_s),
            "inference_s": latency.percentiles_s(latency.inference_s),
            "postprocess_s": latency.percentiles_s(latency.postprocess_s),
        }

    @staticmethod
    def from_json(text: str, source: str) -> Result:
        """Read a result; `source` names it in errors.

        Raises:
            BenchError: not JSON, another schema, or a field missing or unknown.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise BenchError(f"{source} is not valid JSON ({error}): run the bench again") from error
        if not isinstance(fields, dict) or fields.get("schema") not in _READ_SCHEMAS:
            met = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
            known = ", ".join(map(str, _READ_SCHEMAS))
            raise BenchError(f"{source} has schema {met!r}, this version reads {known}: run the bench again")
        fields.pop("summary", None)
        try:
            stages = {name: tuple(samples) for name, samples in fields.pop("latency").items()}
            accuracy = fields.pop("accuracy")
            return Result(
                **fields,
                latency=Latency(**stages),
                accuracy=None if accuracy is None else _accuracy(accuracy),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise BenchError(f"{source} is incomplete ({error}): run the bench again") from error


def _accuracy(fields: Mapping[str, Any]) -> Accuracy | TopAccuracy:
    return TopAccuracy(**fields) if "top1" in fields else Accuracy(**fields)


def read_result(path: Path) -> Result:
    """Read `path`, a result.json or the folder that holds one.

    Raises:
        BenchError: no such file, or not a result.
    """
    file = path / RESULT_NAME if path.is_dir() else path
    if not file.is_file():
        raise BenchError(f"no {RESULT_NAME} at {path}: run python bench/run.py")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BenchError(f"{file} is not UTF-8 text: run the bench again") from error
    return Result.from_json(text, str(file))
