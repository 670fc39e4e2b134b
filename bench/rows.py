"""One line of figures per result, the same in the printed table, the JSON and the page; see `bench.columns`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.records import Accuracy, Result, TopAccuracy
from bench.result_checks import check_kinds
from deploy.bundle import ENGINES, PRECISIONS, TASKS

_TASK_ORDER = {task: place for place, task in enumerate(TASKS)}
_ENGINE_ORDER = {engine: place for place, engine in enumerate(ENGINES)}
_PRECISION_ORDER = {precision: place for place, precision in enumerate(PRECISIONS)}


@dataclass(frozen=True)
class Row:
    """The figures of one bundle on one device.

    Attributes:
        folder: where the result was read from.
        result: the result itself.
        device: name of the device, marked where it is emulated.
        bundle: name of the bundle.
        engine: "onnx", "openvino" or "tflite".
        precision: "fp32", "fp16" or "int8", as asked of the tool chain.
        executed: what the engine executed the convolutions as, by its own account: "INT8 57/63"; None if not told.
        pixels: network input, "640" if square, else "height x width".
        threads: of the engine, as asked; None if not recorded.
        map50_95: 0..1, of a detector or segmenter; None where nothing was scored.
        map50: 0..1, None where nothing was scored.
        top1: 0..1, of a classifier; None where nothing was scored.
        top5: 0..1, of a classifier; None where nothing was scored.
        p50_s: median of preprocess, inference and postprocess together.
        p90_s: 90th percentile of the same.
        p99_s: 99th percentile of the same.
        inference_p50_s: median of the engine call alone.
        fps: images per second of the whole loop.
        peak_rss_bytes: peak resident memory of the process.
        size_bytes: model files on disk.
        load_s: opening the model in a fresh process.
        drop_points: points (0..100) of `accuracy` below that of the float32 bundle of the same student, runtime, size
            and device on the same images, negative for a gain; None without such a one. See `with_drops`.
    """

    folder: Path
    result: Result
    device: str
    bundle: str
    engine: str
    precision: str
    executed: str | None
    pixels: str
    threads: int | None
    map50_95: float | None
    map50: float | None
    top1: float | None
    top5: float | None
    p50_s: float
    p90_s: float
    p99_s: float
    inference_p50_s: float
    fps: float
    peak_rss_bytes: int
    size_bytes: int
    load_s: float
    drop_points: float | None = None

    @property
    def accuracy(self) -> float | None:
        """The main accuracy figure of the bundle's task, 0..1; None where nothing was scored."""
        return self.map50_95 if self.top1 is None else self.top1

    @property
    def streams_fps(self) -> float | None:
        """Images per second of several streams at once; None where the run was not asked for them."""
        return None if self.result.throughput is None else float(self.result.throughput["fps"])

    @property
    def metric(self) -> str:
        """What `accuracy` is called."""
        return "mAP50-95" if self.top1 is None else "top-1"

    @property
    def task(self) -> str:
        """Of the bundle: "detect", "segment" or "classify"."""
        return str(self.result.bundle.get("task", "detect"))

    @property
    def emulated(self) -> bool:
        """Whether the device was an emulated machine, whose times say nothing about a real one."""
        return bool(self.result.machine.get("emulated"))

    @property
    def machine(self) -> dict[str, Any]:
        """Facts of the machine; an emulated one does not pass for the board that its `model` names."""
        facts = dict(self.result.machine)
        if self.emulated and facts.get("model"):
            facts["model"] = f"imitates {facts['model']}"
        return facts


def result_row(result: Result, folder: Path) -> Row:
    """Figures of one result.

    Raises:
        BenchError: a field that every result has is absent or of another kind.
    """
    try:
        check_kinds(result)
        summary = result.summary()
        height, width = result.bundle["imgsz"]
        threads = result.protocol.get("threads")
        return Row(
            folder=folder,
            result=result,
            device=f"{result.device} (emulated)" if result.machine.get("emulated") else str(result.device),
            bundle=str(result.bundle["name"]),
            engine=str(result.bundle["engine"]),
            precision=str(result.bundle["precision"]),
            executed=_executed(result.executed.get("audit")),
            pixels=f"{height}" if height == width else f"{height}x{width}",
            threads=None if threads is None else int(threads),
            **_accuracies(result.accuracy),
            p50_s=summary["total_s"]["p50"],
            p90_s=summary["total_s"]["p90"],
            p99_s=summary["total_s"]["p99"],
            inference_p50_s=summary["inference_s"]["p50"],
            fps=summary["fps"],
            peak_rss_bytes=int(result.peak_rss_bytes),
            size_bytes=int(result.bundle["size_bytes"]),
            load_s=float(result.load_s),
        )
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError, AttributeError) as error:
        raise BenchError(
            f"the result in {folder} is incomplete ({type(error).__name__}: {error}): run the bench again"
        ) from error


def _executed(audit: Mapping[str, Any] | None) -> str | None:
    """The precision of most convolutions and products, and of how many of them."""
    counts = audit["convolutions"] if audit and "error" not in audit else {}
    if not counts:
        return None
    name = max(counts, key=lambda one: int(counts[one]))
    return f"{name} {counts[name]}/{sum(counts.values())}"


def _accuracies(accuracy: Accuracy | TopAccuracy | None) -> dict[str, float | None]:
    names = ("map50_95", "map50", "top1", "top5")
    return {name: float(value) if (value := getattr(accuracy, name, None)) is not None else None for name in names}


def with_drops(rows: Sequence[Row]) -> list[Row]:
    """The same rows with their `drop_points`, as far as there is a float32 row to hold one against."""
    float_rows = {_scored_like(row): row for row in rows if row.precision == "fp32" and row.accuracy is not None}
    known = [
        float_rows.get(_scored_like(row)) if row.precision != "fp32" and row.accuracy is not None else None
        for row in rows
    ]
    return [
        row if other is None else replace(row, drop_points=100 * ((other.accuracy or 0.0) - (row.accuracy or 0.0)))
        for row, other in zip(rows, known, strict=True)
    ]


def _scored_like(row: Row) -> tuple[object, ...]:
    """What bundles share that differ in their precision alone, and were scored on the same images."""
    student = row.result.bundle.get("student")
    made_from = student.get("sha256") if isinstance(student, Mapping) else None
    scored_on = None if row.result.accuracy is None else row.result.accuracy.dataset_sha256
    return str(made_from or row.folder), row.device, row.engine, row.pixels, row.metric, scored_on


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows by device in the order given, then by task, runtime and precision."""
    devices = list(dict.fromkeys(row.device for row in rows))
    return sorted(
        rows,
        key=lambda row: (
            devices.index(row.device),
            _TASK_ORDER.get(row.task, len(_TASK_ORDER)),
            _ENGINE_ORDER.get(row.engine, len(_ENGINE_ORDER)),
            _PRECISION_ORDER.get(row.precision, len(_PRECISION_ORDER)),
            row.bundle,
        ),
    )


def labels(rows: Sequence[Row]) -> list[str]:
    """A name for each row as short as it can be and still unlike the others."""
    devices = {row.device for row in rows}
    short = [f"{row.engine} {row.precision}" for row in rows]
    if len(devices) > 1:
        short = [f"{name} @ {row.device}" for name, row in zip(short, rows, strict=True)]
    whole = [row.bundle if len(devices) == 1 else f"{row.bundle} @ {row.device}" for row in rows]
    chosen = [name if short.count(name) == 1 else long for name, long in zip(short, whole, strict=True)]
    return [name if chosen.count(name) == 1 else f"{name} #{index + 1}" for index, name in enumerate(chosen)]
