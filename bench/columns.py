"""The columns of figures: what each holds, and rows as a table of text or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.rows import Row

Value = float | str | None


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


def _points_text(value: Value) -> str:
    return f"{value:z.2f}" if isinstance(value, (int, float)) else "-"


def _plain_text(value: Value) -> str:
    return "-" if value is None else str(value)


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else value * factor


COLUMNS: tuple[Column, ...] = (
    Column("device", "device", "Where it ran.", lambda row: row.device, _plain_text),
    Column("bundle", "bundle", "The model folder that ran.", lambda row: row.bundle, _plain_text),
    Column("engine", "runtime", "The inference library.", lambda row: row.engine, _plain_text),
    Column("precision", "precision", "Number format of the model.", lambda row: row.precision, _plain_text),
    Column(
        "executed",
        "executed",
        "What the engine ran the convolutions as, and how many of them, by its own account.",
        lambda row: row.executed,
        _plain_text,
    ),
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
        "drop_points",
        "drop pts",
        "Points of mAP50-95, or of top-1, below the fp32 bundle of the same student, runtime and device.",
        lambda row: row.drop_points,
        _points_text,
        min,
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
        "streams_fps",
        "streams FPS",
        "Images per second of several streams at once (--streams).",
        lambda row: row.streams_fps,
        figure_text,
        max,
    ),
    Column(
        "cpu_ms",
        "CPU ms",
        "Processor time per image, user and system, all threads together.",
        lambda row: _times(1e3, row.result.cpu_s_per_image),
        figure_text,
        min,
    ),
    Column(
        "energy_mj",
        "energy mJ",
        "Energy per image of the whole machine, by its meter.",
        lambda row: _times(1e3, row.result.joules_per_image),
        figure_text,
        min,
    ),
    Column(
        "peak_rss_mb",
        "RSS MB",
        "Peak resident memory of the process, opening the model included, in millions of bytes.",
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


# Not every engine, device or call tells them.
_WHERE_KNOWN = ("executed", "drop_points", "streams_fps", "cpu_ms", "energy_mj")
_WORDS = ("device", "bundle", "engine", "precision", "executed")  # aligned to the left


def shown_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns of a table: what no row has, or only bundles of another task, is left out."""
    classified = any(row.top1 is not None for row in rows)
    detected = any(row.map50_95 is not None for row in rows)
    absent = set() if classified else {"top1", "top5"}
    if classified and not detected:
        absent = {"map50_95", "map50"}
    shown = [column for column in COLUMNS if column.key not in absent]
    return [
        column
        for column in shown
        if column.key not in _WHERE_KNOWN or any(column.value(row) is not None for row in rows)
    ]


def text_table(rows: Sequence[Row]) -> str:
    """The table as aligned text, one line per row under a heading; figures to the right."""
    columns = shown_columns(rows)
    lines = [[column.title for column in columns]]
    lines += [[column.text(column.value(row)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    written = []
    for line in lines:
        cells = [
            cell.ljust(width) if column.key in _WORDS else cell.rjust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ]
        written.append("  ".join(cells).rstrip())
    return "\n".join(written)


def json_row(row: Row) -> dict[str, Value]:
    """The row's figures by column key, unrounded, with the folder they were read from."""
    return {column.key: column.value(row) for column in COLUMNS} | {"folder": str(row.folder)}
