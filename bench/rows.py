"""One line of figures per result, the same in the printed table, the JSON and the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.records import Accuracy, Result, TopAccuracy
from bench.result_checks import check_kinds
from deploy.bundle import ENGINES, PRECISIONS

_ENGINE_ORDER = {engine: place for place, engine in enumerate(ENGINES)}
_PRECISION_ORDER = {precision: place for place, precision in enumerate(PRECISIONS)}
Value = float | str | None


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
    """

    folder: Path
    result: Result
    device: str
    bundle: str
    engine: str
    precision: str
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

    @property
    def accuracy(self) -> float | None:
        """The main accuracy figure of the bundle's task, 0..1; None where nothing was scored."""
        return self.map50_95 if self.top1 is None else self.top1

    @property
    def metric(self) -> str:
        """What `accuracy` is called."""
        return "mAP50-95" if self.top1 is None else "top-1"

    @property
    def emulated(self) -> bool:
        """Whether the device was an emulated machine, whose times say nothing about a real one."""
        return bool(self.result.machine.get("emulated"))


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        key: name in the JSON output.
        title: heading, with its unit.
        hint: what it means, in a sentence.
        value: the figure in the unit of the heading.
        text: how the figure is written.
        best: `min` or `max` where one end is the better one.
    """

    key: str
    title: str
    hint: str
    value: Callable[[Row], Value]
    text: Callable[[Value], str]
    best: Callable[[Sequence[float]], float] | None = None


def figure_text(value: Value) -> str:
    """A figure to three digits, or more where they stand before the point; a dash for None."""
    if not isinstance(value, (int, float)):
        return "-" if value is None else str(value)
    return f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"


def percent_text(value: Value) -> str:
    """A figure with one decimal, as mAP is quoted; a dash for None."""
    return f"{value:.1f}" if isinstance(value, (int, float)) else "-"


def _plain_text(value: Value) -> str:
    return "-" if value is None else str(value)


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else value * factor


COLUMNS: tuple[Column, ...] = (
    Column("device", "device", "Where it ran.", lambda row: row.device, _plain_text),
    Column("bundle", "bundle", "The model folder that ran.", lambda row: row.bundle, _plain_text),
    Column("engine", "runtime", "The inference library.", lambda row: row.engine, _plain_text),
    Column("precision", "precision", "Number format of the model.", lambda row: row.precision, _plain_text),
    Column("pixels", "px", "Side of the network input in pixels.", lambda row: row.pixels, _plain_text),
    Column("threads", "threads", "Threads of one inference.", lambda row: row.threads, _plain_text),
    Column(
        "map50_95",
        "mAP50-95 %",
        "COCO mean average precision over IoU 0.50 to 0.95.",
        lambda row: _times(100, row.map50_95),
        percent_text,
        max,
    ),
    Column(
        "map50",
        "mAP50 %",
        "COCO mean average precision at IoU 0.50.",
        lambda row: _times(100, row.map50),
        percent_text,
        max,
    ),
    Column(
        "top1",
        "top-1 %",
        "Images whose class is the one named first.",
        lambda row: _times(100, row.top1),
        percent_text,
        max,
    ),
    Column(
        "top5",
        "top-5 %",
        "Images whose class is among the five named first.",
        lambda row: _times(100, row.top5),
        percent_text,
        max,
    ),
    Column(
        "p50_ms",
        "p50 ms",
        "Median time per image: preprocess, inference and postprocess.",
        lambda row: row.p50_s * 1e3,
        figure_text,
        min,
    ),
    Column("p90_ms", "p90 ms", "90 % of images took no longer.", lambda row: row.p90_s * 1e3, figure_text, min),
    Column("p99_ms", "p99 ms", "99 % of images took no longer.", lambda row: row.p99_s * 1e3, figure_text, min),
    Column(
        "inference_p50_ms",
        "infer p50 ms",
        "Median of the engine call alone.",
        lambda row: row.inference_p50_s * 1e3,
        figure_text,
        min,
    ),
    Column("fps", "FPS", "Images per second of the whole loop.", lambda row: row.fps, figure_text, max),
    Column(
        "peak_rss_mb",
        "RSS MB",
        "Peak resident memory of the process, in millions of bytes.",
        lambda row: row.peak_rss_bytes / 1e6,
        percent_text,
        min,
    ),
    Column(
        "size_mb",
        "size MB",
        "Model files on disk, in millions of bytes.",
        lambda row: row.size_bytes / 1e6,
        figure_text,
        min,
    ),
    Column(
        "load_ms",
        "load ms",
        "Opening the model in a fresh process.",
        lambda row: row.load_s * 1e3,
        figure_text,
        min,
    ),
)


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


def _accuracies(accuracy: Accuracy | TopAccuracy | None) -> dict[str, float | None]:
    names = ("map50_95", "map50", "top1", "top5")
    return {name: float(value) if (value := getattr(accuracy, name, None)) is not None else None for name in names}


def shown_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns of a table: a metric that only bundles of another task have is left out."""
    classified = any(row.top1 is not None for row in rows)
    detected = any(row.map50_95 is not None for row in rows)
    absent = set() if classified else {"top1", "top5"}
    if classified and not detected:
        absent = {"map50_95", "map50"}
    return [column for column in COLUMNS if column.key not in absent]


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Rows by device in the order given, then by runtime and precision."""
    devices = list(dict.fromkeys(row.device for row in rows))
    return sorted(
        rows,
        key=lambda row: (
            devices.index(row.device),
            _ENGINE_ORDER.get(row.engine, len(_ENGINE_ORDER)),
            _PRECISION_ORDER.get(row.precision, len(_PRECISION_ORDER)),
            row.bundle,
        ),
    )


def text_table(rows: Sequence[Row]) -> str:
    """The table as aligned text, one line per row under a heading; figures to the right."""
    columns = shown_columns(rows)
    lines = [[column.title for column in columns]]
    lines += [[column.text(column.value(row)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    written = []
    for line in lines:
        cells = [
            cell.ljust(width) if index < 4 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        written.append("  ".join(cells).rstrip())
    return "\n".join(written)


def json_row(row: Row) -> dict[str, Value]:
    """The row's figures by column key, unrounded, with the folder they were read from."""
    return {column.key: column.value(row) for column in COLUMNS} | {"folder": str(row.folder)}


def labels(rows: Sequence[Row]) -> list[str]:
    """A name for each row as short as it can be and still unlike the others."""
    devices = {row.device for row in rows}
    short = [f"{row.engine} {row.precision}" for row in rows]
    if len(devices) > 1:
        short = [f"{name} @ {row.device}" for name, row in zip(short, rows, strict=True)]
    whole = [row.bundle if len(devices) == 1 else f"{row.bundle} @ {row.device}" for row in rows]
    chosen = [name if short.count(name) == 1 else long for name, long in zip(short, whole, strict=True)]
    return [name if chosen.count(name) == 1 else f"{name} #{index + 1}" for index, name in enumerate(chosen)]
