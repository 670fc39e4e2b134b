"""The report as one HTML file that needs nothing else: no server, no network, no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bench.class_samples import Mistake, mistake_section
from bench.columns import COLUMNS, Column, Value, figure_text, percent_text, shown_columns
from bench.plots import Point, accuracy_plot, legend_mark
from bench.report_assets import SCRIPT, STYLE
from bench.report_notes import result_notes
from bench.report_sections import (
    class_section,
    latency_section,
    machine_section,
    run_section,
    sample_section,
    scroll_region,
)
from bench.rows import Row, labels
from bench.samples import Sample

# Nothing may be fetched, not even by a name in a result that looks like markup.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_HOLLOW = " Hollow marks are of emulated machines: their times say nothing about a real one."
_KINDS = {"detect": "detector", "segment": "segmenter", "classify": "classifier"}


def render_page(
    rows: Sequence[Row], samples: Sequence[Sample], notes: Sequence[str], mistakes: Sequence[Mistake] = ()
) -> str:
    """The whole page.

    Args:
        rows: at least one, in the order to show them.
        samples: drawn images, may be empty.
        notes: what could not be shown; added to what the results themselves call for.
        mistakes: drawn images that classifiers got wrong, may be empty.

    Returns:
        HTML text.
    """
    names = labels(rows)
    title = escape(page_title(rows))
    body = [
        f"<header><h1>{title}</h1>{_lead(rows)}</header>",
        _best_of(rows, names),
        _notes([*result_notes(rows, names), *notes]),
        _table_section(rows),
        _plot_section(rows, names),
        latency_section(rows, names),
        class_section(rows, names),
        sample_section(samples),
        mistake_section(mistakes),
        machine_section(rows),
        run_section(rows, names),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + f'\n<div id="tip" role="status" hidden></div>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


def page_title(rows: Sequence[Row]) -> str:
    """What was measured, in a few words."""
    students = list(dict.fromkeys(_student_name(row) for row in rows))
    data = list(dict.fromkeys(row.result.accuracy.dataset for row in rows if row.result.accuracy))
    what = students[0] if len(students) == 1 else f"{len(students)} students"
    on_data = f" on {data[0]}" if len(data) == 1 else ""
    return f"{what}{on_data}"


def _lead(rows: Sequence[Row]) -> str:
    facts: dict[str, str] = {"student": ", ".join(dict.fromkeys(_student_name(row) for row in rows))}
    if teachers := list(dict.fromkeys(name for row in rows if (name := _teacher_name(row)))):
        facts["teacher"] = ", ".join(teachers)
    scored = [row.result.accuracy for row in rows if row.result.accuracy]
    if scored:
        sets = dict.fromkeys(f"{one.dataset}, {_count(one.images, 'image')}" for one in scored)
        facts["data set" if len(sets) == 1 else "data sets"] = "; ".join(sets)
    devices = list(dict.fromkeys(_device_text(row) for row in rows))
    facts["device" if len(devices) == 1 else "devices"] = "; ".join(devices)
    facts["measured"] = _period([row.result.created for row in rows])
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="lead">{items}</dl>'


def _best_of(rows: Sequence[Row], names: Sequence[str]) -> str:
    by_row = dict(zip(map(id, rows), names, strict=True))
    tasks = list(dict.fromkeys(row.task for row in rows))
    written = ""
    for task in tasks:
        kind = "" if len(tasks) == 1 else f" {_KINDS.get(task, task)}"
        alike = [row for row in rows if row.task == task]
        for what, figure, row in _best_cards(alike) if len(alike) > 1 else []:
            name = escape(by_row[id(row)])
            written += f"<div><span>{escape(what + kind)}</span><b>{figure}</b><span>{name}</span></div>"
    return f'<div class="best-of">{written}</div>' if written else ""


def _best_cards(rows: Sequence[Row]) -> list[tuple[str, str, Row]]:
    """What the best row of a task is best in, the figure, and the row."""
    # An emulated machine's time is no time, unless there is no other.
    timed = [row for row in rows if not row.emulated] or list(rows)
    cards = []
    for metric in dict.fromkeys(row.metric for row in rows if row.accuracy is not None):
        row = max((row for row in rows if row.metric == metric), key=lambda row: row.accuracy or 0.0)
        cards.append(("most accurate", f"{percent_text(100 * (row.accuracy or 0.0))} {metric}", row))
    row = min(timed, key=lambda row: row.p50_s)
    fastest = "fastest (emulated)" if row.emulated else "fastest"
    cards.append((fastest, f"{figure_text(row.p50_s * 1e3)} ms p50", row))
    row = min(rows, key=lambda row: row.peak_rss_bytes)
    cards.append(("least memory", f"{percent_text(row.peak_rss_bytes / 1e6)} MB peak", row))
    row = min(rows, key=lambda row: row.size_bytes)
    cards.append(("smallest", f"{figure_text(row.size_bytes / 1e6)} MB on disk", row))
    return cards


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes))
    return f'<ul class="notes">{items}</ul>' if items else ""


def _table_section(rows: Sequence[Row]) -> str:
    columns = shown_columns(rows)
    headings = "".join(
        f'<th scope="col"{_text_class(column)}><button type="button" title="{escape(column.hint)}">'
        f"{escape(column.title)}</button></th>"
        for column in columns
    )
    # A classifier is not the faster detector.
    best = {
        id(row): _best_keys(row, [other for other in rows if (other.device, other.task) == (row.device, row.task)])
        for row in rows
    }
    lines = "".join(
        f"<tr>{''.join(_cell(column, row, column.key in best[id(row)]) for column in columns)}</tr>" for row in rows
    )
    return (
        "<section><h2>Figures</h2>"
        '<p class="soft">Latency is per image: preprocess, inference and postprocess. Green is the best of its '
        "device and task. A heading sorts by its column.</p>"
        f'{scroll_region("Figures")}<table class="figures sortable"><thead><tr>{headings}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div></section>"
    )


def _cell(column: Column, row: Row, best: bool) -> str:
    value = column.value(row)
    classes = " ".join(name for name, holds in (("text", _is_text(column)), ("best", best)) if holds)
    mark = legend_mark(row.engine, row.precision) if column.key == "bundle" else ""
    return (
        f'<td class="{classes}" data-key="{column.key}" data-value="{_raw(value)}">'
        f"{mark}{escape(column.text(value))}</td>"
    )


def _best_keys(row: Row, others: Sequence[Row]) -> set[str]:
    """Columns in which the row is the best of `others`; none where there is nothing to compare."""
    keys = set()
    for column in COLUMNS:
        values = [value for other in others if isinstance(value := column.value(other), (int, float))]
        if column.best and len(values) > 1 and len(set(values)) > 1 and column.value(row) == column.best(values):
            keys.add(column.key)
    return keys


def _plot_section(rows: Sequence[Row], names: Sequence[str]) -> str:
    metrics = dict.fromkeys(row.metric for row in rows if row.accuracy is not None)
    titles = {metric: "Accuracy" if len(metrics) == 1 else f"Accuracy ({metric})" for metric in metrics}
    return "\n".join(_metric_plot(rows, names, metric, title) for metric, title in titles.items())


def _metric_plot(rows: Sequence[Row], names: Sequence[str], metric: str, title: str) -> str:
    points = [
        Point(
            latency_ms=row.p50_s * 1e3,
            accuracy=100 * row.accuracy,
            label=name,
            engine=row.engine,
            precision=row.precision,
            device=row.device,
            emulated=row.emulated,
            tip=(
                _accuracy_text(row),
                f"p50 {figure_text(row.p50_s * 1e3)} ms, p99 {figure_text(row.p99_s * 1e3)} ms",
                f"{percent_text(row.peak_rss_bytes / 1e6)} MB peak, {figure_text(row.size_bytes / 1e6)} MB on disk",
                row.device,
            ),
        )
        for row, name in zip(rows, names, strict=True)
        if row.accuracy is not None and row.metric == metric
    ]
    kinds = dict.fromkeys((point.engine, point.precision) for point in points)
    legend = "".join(f"<li>{legend_mark(*kind)}{escape(' '.join(kind))}</li>" for kind in kinds)
    plots = (("plot-wide", 1120, 420), ("plot-narrow", 380, 340))
    drawn = "".join(
        f'<div class="{name}">{accuracy_plot(points, width, height, metric)}</div>' for name, width, height in plots
    )
    return (
        f"<section><h2>{title} against latency</h2>"
        '<p class="soft">Upper left is best. The dashed line joins the bundles of a device that no other beats in both.'
        f"{_HOLLOW if any(point.emulated for point in points) else ''}"
        f'</p><figure>{drawn}<figcaption><ul class="legend">{legend}</ul></figcaption></figure></section>'
    )


def _accuracy_text(row: Row) -> str:
    if row.top1 is None:
        return (
            f"mAP50-95 {percent_text(100 * (row.map50_95 or 0.0))} %, mAP50 {percent_text(100 * (row.map50 or 0.0))} %"
        )
    return f"top-1 {percent_text(100 * row.top1)} %, top-5 {percent_text(100 * (row.top5 or 0.0))} %"


def _student_name(row: Row) -> str:
    student = row.result.bundle.get("student")
    return _name_in(student) or row.bundle


def _teacher_name(row: Row) -> str | None:
    student = row.result.bundle.get("student")
    return _name_in(student.get("teacher")) if isinstance(student, Mapping) else None


def _name_in(facts: Any) -> str | None:
    if isinstance(facts, Mapping):
        return next((str(facts[key]) for key in ("name", "file") if facts.get(key)), None)
    return str(facts) if facts else None


def _raw(value: Value) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else escape(str(value), quote=True)


def _is_text(column: Column) -> bool:
    return column.key in ("device", "bundle", "engine", "precision")


def _text_class(column: Column) -> str:
    return ' class="text"' if _is_text(column) else ""


def _device_text(row: Row) -> str:
    model = row.machine.get("model")
    return f"{row.device}, {model}" if model else row.device


def _period(created: Sequence[str]) -> str:
    """First and last minute of ISO 8601 times in UTC, the day said once where it is one."""
    first, last = (min(created)[:16].replace("T", " "), max(created)[:16].replace("T", " "))
    if first == last:
        return f"{first} UTC"
    return f"{first} to {last[11:] if last[:10] == first[:10] else last} UTC"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
