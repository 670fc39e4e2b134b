"""The sections of the report page below its table: latency, classes, sample images, machines, how it was run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bench.columns import figure_text, percent_text
from bench.plots import histogram, legend_mark, order_plot
from bench.rows import Row
from bench.samples import SHOWN_IOU, SHOWN_SCORE, Sample, Tile

_MANY_CLASSES = 20
_MACHINE_FIRST = ("model", "processor", "architecture", "cores", "memory", "system", "kernel")
_SHOWN_ELSEWHERE = ("command", "notes", "warmup_s")  # of the protocol; raw samples are for result.json
_STAGES = (("pre", "preprocess"), ("inf", "inference"), ("post", "postprocess"))


def scroll_region(name: str) -> str:
    """The opening tag around what may be wider than the page: it takes the focus, so that arrow keys move it."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name, quote=True)}">'


def latency_section(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Stages, distribution and order of the samples of every row.

    Args:
        rows: in the order to show them.
        names: one short name per row.

    Returns:
        HTML text.
    """
    parts = []
    for device in dict.fromkeys(row.device for row in rows):
        chosen = [(row, name) for row, name in zip(rows, names, strict=True) if row.device == device]
        # Bars of one device share a scale, so that their lengths compare; a device may be a hundred times slower.
        longest = max(sum(_stage_medians(row)) for row, _ in chosen)
        parts += [_latency_row(row, name, longest) for row, name in chosen]
    keys = "".join(f'<span><i class="key {key}"></i>{stage}</span> ' for key, stage in _STAGES)
    return (
        '<section><h2>Where the time goes</h2><p class="stage-text soft">Median of each stage: '
        f"{keys}</p>"
        '<p class="soft">First plot: distribution of all samples, lines at p50, p90 and p99, each on its own scale. '
        f"Second: the same samples in the order taken, from least to greatest.</p>{''.join(parts)}</section>"
    )


def _latency_row(row: Row, name: str, longest_s: float) -> str:
    medians = _stage_medians(row)
    bars = "".join(
        f'<i class="{key}" style="width:{100 * median / longest_s:.2f}%"></i>'
        for (key, _), median in zip(_STAGES, medians, strict=True)
    )
    written = "".join(
        f'<span><i class="key {key}"></i>{figure_text(median * 1e3)} ms</span> '
        for (key, _), median in zip(_STAGES, medians, strict=True)
    )
    samples = [sample * 1e3 for sample in row.result.latency.total_s()]
    return (
        f'<div class="latency"><div class="name"><b>{legend_mark(row.engine, row.precision)} {escape(name)}</b>'
        f'<br><span class="soft">{len(samples)} samples, first call '
        f"{figure_text(row.result.first_inference_s * 1e3)} ms</span></div>"
        f'<div><div class="stages">{bars}</div><p class="stage-text">{written}</p></div>'
        f"<div>{histogram(samples)}</div><div>{order_plot(samples)}</div></div>"
    )


def _stage_medians(row: Row) -> list[float]:
    summary = row.result.summary()
    return [float(summary[f"{stage}_s"]["p50"]) for _, stage in _STAGES]


def class_section(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Accuracy per class, one column per row that was scored, one table per metric; folded where there are many."""
    metrics = dict.fromkeys(row.metric for row in rows if row.result.accuracy)
    return "\n".join(_class_table(rows, names, metric) for metric in metrics)


def _class_table(rows: Sequence[Row], names: Sequence[str], metric: str) -> str:
    scored = [
        (row.result.accuracy.per_class, name)
        for row, name in zip(rows, names, strict=True)
        if row.result.accuracy and row.metric == metric
    ]
    classes = list(dict.fromkeys(name for per_class, _ in scored for name in per_class))
    headings = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for _, name in scored)
    lines = "".join(
        f'<tr><td class="text" data-value="{escape(name, quote=True)}">{escape(name)}</td>'
        f"{''.join(_ap_cell(per_class.get(name)) for per_class, _ in scored)}</tr>"
        for name in classes
    )
    table = (
        f'{scroll_region("Accuracy per class")}<table class="classes sortable"><thead><tr><th scope="col" class="text">'
        f'<button type="button">class</button></th>{headings}</tr></thead><tbody>{lines}</tbody></table></div>'
    )
    if len(classes) > _MANY_CLASSES:
        table = f"<details><summary>{len(classes)} classes</summary>{table}</details>"
    title, left_out = ("Top-1", "images") if metric == "top-1" else ("AP50-95", "labelled objects")
    return (
        f"<section><h2>{title} per class, %</h2>"
        f'<p class="soft">Classes without {left_out} are left out.</p>{table}</section>'
    )


def _ap_cell(ap: float | None) -> str:
    if ap is None:
        return '<td data-value="">-</td>'
    return f'<td class="ap" style="--part:{ap:.4f}" data-value="{ap}">{percent_text(100 * ap)}</td>'


def sample_section(samples: Sequence[Sample]) -> str:
    """Drawn images: the truth, then each bundle."""
    if not samples:
        return ""
    parts = [
        f'<h3>{escape(sample.name)} <span class="soft">({escape(sample.why)})</span></h3>'
        f'<div class="tiles">{"".join(_tile(tile, sample) for tile in sample.tiles)}</div>'
        for sample in samples
    ]
    return (
        '<section><h2>Sample images</h2><p class="soft">The same images for every bundle, chosen by how well they went '
        f"over all bundles. Detections of score {SHOWN_SCORE:g} and more; right is an overlap of {SHOWN_IOU:g} with an "
        f"object of the same class. Click an image to enlarge it.</p>{''.join(parts)}</section>"
    )


def _tile(tile: Tile, sample: Sample) -> str:
    if tile.outcome is None:
        what = "object" if tile.title == "truth" else "detection"
        result = f"1 {what}" if tile.objects == 1 else f"{tile.objects} {what}s"
    else:
        result = f"{tile.outcome.right} right, {tile.outcome.wrong} wrong, {tile.outcome.missed} missed"
    description = escape(f"{sample.name}, {tile.title}: {result}", quote=True)
    return (
        f'<figure class="tile"><button type="button" aria-pressed="false"><img src="{tile.data_uri}" '
        f'width="{tile.width}" height="{tile.height}" alt="{description}"></button>'
        f"<figcaption><b>{escape(tile.title)}</b><br>{result}</figcaption></figure>"
    )


def machine_section(rows: Sequence[Row]) -> str:
    """Facts of every device, one column each, as its own process read them."""
    devices = list(dict.fromkeys(row.device for row in rows))
    facts = [machine_lines(next(row.machine for row in rows if row.device == device)) for device in devices]
    names = list(dict.fromkeys(name for known in facts for name in known))
    headings = "".join(f'<th scope="col">{escape(device)}</th>' for device in devices)
    lines = ""
    for name in names:
        cells = "".join(f"<td>{escape(known.get(name, '-'))}</td>" for known in facts)
        lines += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    return (
        f'<section><h2>Machines</h2>{scroll_region("Machines")}<table class="facts"><thead><tr><td></td>'
        f"{headings}</tr></thead><tbody>{lines}</tbody></table></div></section>"
    )


def machine_lines(machine: Mapping[str, Any]) -> dict[str, str]:
    """What a machine is, then what changes while it runs, as it was before and after the measurement."""
    lines = dict(flat_facts({key: value for key, value in machine.items() if key not in ("before", "after")}))
    known = {name: lines.pop(name) for name in _MACHINE_FIRST if name in lines} | lines
    before, after = (dict(flat_facts(machine.get(when) or {})) for when in ("before", "after"))
    for name in dict.fromkeys([*before, *after]):
        first, last = before.get(name, "-"), after.get(name, "-")
        known[name] = first if first == last else f"{first} before, {last} after"
    return known


def run_section(rows: Sequence[Row], names: Sequence[str]) -> str:
    """How each row was measured: command, protocol, what the engine executed, versions and hashes."""
    parts = []
    commands = dict.fromkeys(command for row in rows if (command := _command(row)))
    if commands:
        parts.append("".join(f"<pre>{escape(command)}</pre>" for command in commands))
    for row, name in zip(rows, names, strict=True):
        result = row.result
        facts = {
            "folder": row.folder,
            "created": result.created,
            "bundle": result.bundle,
            "protocol": {key: value for key, value in result.protocol.items() if key not in _SHOWN_ELSEWHERE},
            "executed": result.executed,
            "tools": result.tools,
        }
        if result.accuracy:
            facts["data set"] = {
                "name": result.accuracy.dataset,
                "images": result.accuracy.images,
                "sha256": result.accuracy.dataset_sha256,
            }
        parts.append(f"<details><summary>{escape(name)}</summary>{_facts_table(flat_facts(facts))}</details>")
    return f"<section><h2>How it was measured</h2>{''.join(parts)}</section>"


def flat_facts(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as name and text, names joined by a space; bytes become MB, Hz become MHz."""
    lines: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f"{prefix} {key}".strip()
        if isinstance(value, Mapping):
            lines += flat_facts(value, name)
        elif isinstance(value, (list, tuple)):
            lines.append((name, ", ".join(str(item) for item in value) or "none"))
        elif isinstance(value, bool):
            lines.append((name, "yes" if value else "no"))
        elif isinstance(value, (int, float)) and name.endswith(("_bytes", "_hz")):
            lines.append((name.rpartition("_")[0], _quantity_text(value, name.rpartition("_")[2])))
        elif value is not None and value != "":
            lines.append((name, str(value)))
    return [(name.replace("_", " "), text) for name, text in lines]


def _quantity_text(value: float, unit: str) -> str:
    if unit == "hz":
        return f"{value / 1e6:,.0f} MHz"
    return f"{value / 1e6:,.1f} MB" if value >= 1e6 else f"{value:,} bytes"


def _facts_table(facts: Sequence[tuple[str, str]]) -> str:
    lines = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>' for name, text in facts)
    return f'<table class="facts"><tbody>{lines}</tbody></table>'


def _command(row: Row) -> str | None:
    command = row.result.protocol.get("command")
    if isinstance(command, (list, tuple)):
        return shlex.join(str(word) for word in command)
    return None if command is None else str(command)
