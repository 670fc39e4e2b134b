"""A run's page as HTML text: what it reached, its curves, its agreement with the teacher, images, facts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from distill.page_assets import SCRIPT, STYLE
from distill.page_curves import Curve, draw_curves
from distill.page_samples import Sample, Tile

__all__ = ["Rows", "ShownRun", "render_page"]

_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_MEASURES: Final = (
    ("class_kl", "class KL, nats per sure anchor", "0", min),
    ("same_class", "same class in front", "1", max),
    ("box_iou", "IoU of the two boxes", "1", max),
)

Rows = Sequence[Mapping[str, float | None]]


@dataclass(frozen=True)
class ShownRun:
    """A run as the page shows it.

    Attributes:
        folder: of the run.
        recipe: the content of recipe.json.
        student: the content of student.json; None while it trains.
        rows: results.csv, one mapping per epoch.
        agreement: what agreement.json holds of this run; None where it has none.
    """

    folder: Path
    recipe: Mapping[str, Any]
    student: Mapping[str, Any] | None
    rows: Rows
    agreement: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """The student as given: ``yolov8n``."""
        return Path(str(self.recipe["student"])).stem


def render_page(run: ShownRun, against: ShownRun | None, samples: Sequence[Sample], notes: Sequence[str]) -> str:
    """The whole page.

    Args:
        run: with at least one epoch.
        against: a run to compare with, such as the same training without a teacher.
        samples: drawn validation images, may be empty.
        notes: what could not be shown.
    """
    title = f"{run.name} on {Path(str(run.recipe['data'])).stem}"
    taught = _teacher_names(run)
    lead = f"taught by {', '.join(taught)}" if taught else "trained without a teacher"
    state = "" if run.student else f", epoch {len(run.rows)} of {run.recipe['epochs']}: not finished"
    body = [
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(lead + state)} · <code>{escape(str(run.folder))}'
        "</code></p></header>",
        _cards(run, against),
        _notes(notes),
        _curve_section(run, against),
        _agreement_section(run, against),
        _sample_section(samples),
        _fact_section(run, against),
        _epoch_table(run),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + f'\n<div id="tip" role="status" hidden></div>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


def _cards(run: ShownRun, against: ShownRun | None) -> str:
    best = _best(run.rows)
    cards = [("best mAP50-95 in training", _percent(best), f"epoch {_best_epoch(run.rows)} of {len(run.rows)}")]
    if run.student:
        metrics = run.student["metrics"]
        parameters = f"{run.student['student']['parameters']:,} parameters"
        cards = [
            ("student, mAP50-95", _percent(metrics["map50_95"]), "validation images, best checkpoint"),
            ("student, mAP50", _percent(metrics["map50"]), parameters),
        ]
    if against is not None:
        ours, theirs = (_reached(r) for r in (run, against))
        cards.append((f"{against.folder.name}, mAP50-95", _percent(theirs), _taught(against)))
        if ours is not None and theirs is not None:
            difference = 100 * (ours - theirs)
            cards.append(("difference", f"{difference:+.2f} points", "one run each: no spread is known"))
    written = "".join(
        f"<div><span>{escape(what)}</span><b>{escape(figure)}</b><span>{escape(more)}</span></div>"
        for what, figure, more in cards
    )
    return f'<div class="cards">{written}</div>'


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def _curve_section(run: ShownRun, against: ShownRun | None) -> str:
    columns = list(dict.fromkeys(key for row in run.rows for key in row))
    other = "" if against is None else against.folder.name
    figures = []
    for letter, kind in (("B", ""), ("M", " of masks"), ("P", " of keypoints")):
        names = [n for n in (f"metrics/mAP50-95({letter})", f"metrics/mAP50({letter})") if n in columns]
        curves = []
        for number, name in enumerate(names):
            short = name.removeprefix("metrics/").split("(")[0]
            curves.append(Curve(short, _column(run, name), f"c{number}"))
            if against is not None:
                curves.append(Curve(f"{short}, {other}", _column(against, name), f"c{number}", dashed=True))
        figures += _figure(f"Accuracy{kind}, %", curves, percent=True)
    labels = [c.removeprefix("train/") for c in columns if c.startswith("train/") and "kd_" not in c]
    for name in labels:
        curves = [
            Curve("training", _column(run, f"train/{name}"), "c0"),
            Curve("validation", _column(run, f"val/{name}"), "c0", dashed=True),
        ]
        if against is not None:
            curves.append(Curve(f"training, {other}", _column(against, f"train/{name}"), "c2"))
            curves.append(Curve(f"validation, {other}", _column(against, f"val/{name}"), "c2", dashed=True))
        figures += _figure(name.replace("_", " "), curves)
    taught = [c for c in columns if c.startswith("train/kd_")]
    for number, name in enumerate(taught):
        short = name.removeprefix("train/kd_")
        figures += _figure(f"distillation: {short}", [Curve(short, _column(run, name), f"c{1 + number % 5}")])
    return (
        '<section><h2>Curves</h2><p class="soft">Losses as they enter the sum, weights included. Point at a curve, '
        f'or focus it and use the arrow keys, to read an epoch.</p><div class="figures">{"".join(figures)}</div>'
        "</section>"
    )


def _figure(title: str, curves: Sequence[Curve], *, percent: bool = False) -> list[str]:
    shown = [curve for curve in curves if any(v is not None for v in curve.values)]
    return [draw_curves(title, shown, percent=percent)] if shown else []


def _agreement_section(run: ShownRun, against: ShownRun | None) -> str:
    if run.agreement is None:
        return ""
    others = [] if against is None or against.agreement is None else against.agreement["teachers"]
    tables = []
    for measured in run.agreement["teachers"]:
        other = next((o for o in others if o["sha256"] == measured["sha256"]), None)
        tables.append(_agreement_table(measured, other, against))
    return (
        "<section><h2>Agreement with the teacher</h2>"
        '<p class="soft">On validation images, raw outputs. Classes and boxes are compared at the anchors where the '
        "teacher's highest class probability is 0.25 or more; features by linear CKA (Kornblith et al. 2019) over all "
        "positions of each neck level. Agreement is not accuracy: a student may agree with a teacher that errs.</p>"
        f"{''.join(tables)}</section>"
    )


def _agreement_table(ours: Mapping[str, Any], theirs: Mapping[str, Any] | None, against: ShownRun | None) -> str:
    rows: list[tuple[str, str, float | None, float | None, Any]]
    rows = [(what, equal, ours[key], theirs[key] if theirs else None, best) for key, what, equal, best in _MEASURES]
    for level, value in enumerate(ours["feature_cka"]):
        other = theirs["feature_cka"][level] if theirs else None
        rows.append((f"feature similarity (CKA), neck level P{level + 3}", "1", value, other, max))
    name = "" if theirs is None or against is None else f"<th scope='col'>{escape(against.folder.name)}</th>"
    lines = []
    for what, equal, value, other, best in rows:
        figures = [v for v in (value, other) if v is not None]
        marked = [v is not None and len(set(figures)) > 1 and v == best(figures) for v in (value, other)]
        cells = "".join(
            f"<td{' class=best' if mark else ''}>{'-' if v is None else f'{v:.4f}'}</td>"
            for v, mark in zip((value, other) if name else (value,), marked, strict=False)
        )
        lines.append(f"<tr><td>{escape(what)}</td>{cells}<td>{equal}</td></tr>")
    heading = (
        f"<h3>{escape(ours['file'])} <code>{ours['sha256'][:12]}</code></h3>"
        f'<p class="soft">{ours["images"]} of {ours["of_images"]} images at {ours["imgsz"]} px, '
        f"{ours['sure_anchors']:,} sure anchors.</p>"
    )
    return (
        f'{heading}<div class="scroll" tabindex="0" role="region" aria-label="Agreement"><table><thead><tr>'
        f'<th scope="col">measure</th><th scope="col">student</th>{name}<th scope="col">if equal</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _sample_section(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    shown = "".join(
        f'<h3>{escape(s.name)} <span class="soft">{escape(s.why)}</span></h3>'
        f'<div class="tiles">{"".join(_tile(tile, s.name) for tile in s.tiles)}</div>'
        for s in samples
    )
    return (
        '<section><h2>Validation images</h2><p class="soft">Detections from score 0.25, counted at IoU 0.5 with the '
        f"class right. A picture grows when it is pressed.</p>{shown}</section>"
    )


def _tile(tile: Tile, name: str) -> str:
    judged = (
        f"{tile.objects} object{'' if tile.objects == 1 else 's'}"
        if tile.right is None
        else f"{tile.right} right, {tile.wrong} wrong, {tile.missed} missed"
    )
    return (
        f'<figure class="tile"><button type="button" aria-pressed="false" aria-label="{escape(tile.title)}, larger">'
        f'<img src="{tile.data_uri}" width="{tile.width}" height="{tile.height}" loading="lazy" '
        f'alt="{escape(name)}, {escape(tile.title)}: {judged}"></button>'
        f"<figcaption><b>{escape(tile.title)}</b> {judged}</figcaption></figure>"
    )


def _fact_section(run: ShownRun, against: ShownRun | None) -> str:
    facts = {key: _plain(value) for key, value in run.recipe.items() if key != "schema"}
    if run.rows:
        facts["training time"] = f"{float(run.rows[-1].get('time') or 0):,.0f} s for {len(run.rows)} epochs"
    if run.student:
        facts |= {f"{group} {k}": _plain(v) for group in ("student", "data") for k, v in run.student[group].items()}
        facts |= {tool: str(version) for tool, version in run.student["tools"].items()}
        facts["created"] = str(run.student["created"])
    if against is not None:
        ours, theirs = run.recipe, against.recipe
        differ = [k for k in ours if ours[k] != theirs.get(k) and k not in ("device", "workers")]
        facts[f"differs from {against.folder.name} in"] = ", ".join(differ) or "nothing"
    lines = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in facts.items())
    return f'<section><h2>Run</h2><table class="facts"><tbody>{lines}</tbody></table></section>'


def _epoch_table(run: ShownRun) -> str:
    columns = [c for c in dict.fromkeys(k for row in run.rows for k in row) if not c.startswith("lr/")]
    heads = "".join(f'<th scope="col">{escape(c.split("/")[-1].replace("_", " "))}</th>' for c in columns)
    lines = "".join(
        "<tr>" + "".join(f"<td>{'-' if (v := row.get(c)) is None else f'{v:.5g}'}</td>" for c in columns) + "</tr>"
        for row in run.rows
    )
    return (
        '<details><summary>Every epoch in figures</summary><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Epochs"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div></details>'
    )


def _column(run: ShownRun, name: str) -> list[float | None]:
    return [row.get(name) for row in run.rows]


def _best(rows: Rows) -> float | None:
    return max((v for row in rows if (v := row.get("metrics/mAP50-95(B)")) is not None), default=None)


def _best_epoch(rows: Rows) -> int:
    return 1 + max(range(len(rows)), key=lambda i: rows[i].get("metrics/mAP50-95(B)") or 0.0)


def _reached(run: ShownRun) -> float | None:
    return float(run.student["metrics"]["map50_95"]) if run.student else _best(run.rows)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _teacher_names(run: ShownRun) -> list[str]:
    given = run.recipe.get("teachers") or ([{"path": run.recipe["teacher"]}] if run.recipe.get("teacher") else [])
    return ["/".join(Path(str(teacher["path"])).parts[-3:]) for teacher in given]


def _taught(run: ShownRun) -> str:
    return f"taught by {', '.join(names)}" if (names := _teacher_names(run)) else "no teacher"


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value or "-"
    return json.dumps(value) if isinstance(value, (Mapping, list, tuple)) else str(value)
