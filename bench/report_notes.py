"""What a reader must know before comparing the figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.rows import Row

_TAIL_FACTOR = 2.0
_FEW_SAMPLES = 100
_BUSY = 0.5  # load per core before the run, from which on the machine was not ours alone


def result_notes(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Notes that the results themselves call for.

    Args:
        rows: the rows shown.
        names: one short name per row.

    Returns:
        One sentence or two each, no two alike.
    """
    notes: list[str] = []
    for metric in dict.fromkeys(row.metric for row in rows):
        named = "mAP" if metric == "mAP50-95" else metric
        scored = [row.result.accuracy for row in rows if row.metric == metric]
        if len({accuracy.dataset_sha256 for accuracy in scored if accuracy}) > 1:
            notes.append(f"The bundles were scored on different images: their {named} values do not compare.")
    for device in dict.fromkeys(row.device for row in rows):
        notes += [f"{device}: {note}" for note in _device_notes([row for row in rows if row.device == device])]
    about: dict[str, list[str]] = {}
    for row, name in zip(rows, names, strict=True):
        for note in _row_notes(row):
            about.setdefault(note, []).append(name)
    for note, those in about.items():
        notes.append(f"{'every bundle' if len(those) == len(rows) > 1 else ', '.join(those)}: {note}")
    return notes


def _row_notes(row: Row) -> list[str]:
    recorded = row.result.protocol.get("notes")
    notes = [str(note) for note in (recorded if isinstance(recorded, (list, tuple)) else [recorded]) if note]
    asked, executed = (row.result.executed.get(f"precision_hint_{which}") for which in ("asked", "executed"))
    if asked is not None and asked != executed:
        notes.append(f"asked to run in {asked}, the engine executed {executed}.")
    audit = _mapping(row.result.executed.get("audit"))
    if audit.get("passed") is False:
        notes.append(f"{audit.get('verdict')}.")
    elif "error" in audit:
        notes.append(f"what was executed is not known: {audit['error']}.")
    count = len(row.result.latency.inference_s)
    if count < _FEW_SAMPLES:
        notes.append(f"fewer than {_FEW_SAMPLES} latency samples: p99 is little more than the slowest one.")
    if row.p99_s > _TAIL_FACTOR * row.p50_s:
        notes.append(f"p99 is {row.p99_s / row.p50_s:.1f} times p50: something else may have run on the machine.")
    if row.accuracy is None:
        notes.append("not scored, no labelled data was given.")
    elif row.result.bundle.get("task") == "segment":
        notes.append("scored by its boxes; its masks are not scored.")
    if row.result.executed.get("model_cache") == "loaded":
        notes.append("found the opened model in its cache: a first load takes longer, and more memory.")
    return notes


def _device_notes(rows: Sequence[Row]) -> list[str]:
    """Emulation, unlike threads, throttling and foreign load, as `bench.machine` records them around a run."""
    notes = []
    if any(row.emulated for row in rows):
        notes.append("emulated, not a Pi's time. Its accuracy holds, its latency does not.")
    threads = sorted({row.threads for row in rows if row.threads is not None})
    if len(threads) > 1:
        counts = ", ".join(str(count) for count in threads)
        notes.append(f"bundles ran with different thread counts ({counts}): their times do not compare.")
    states = [_mapping(row.result.machine.get(when)) for row in rows for when in ("before", "after")]
    states += [row.result.machine for row in rows]
    for key, when in (("now", "during the measurements"), ("occurred", "at some time since it was started")):
        causes = dict.fromkeys(
            str(cause) for state in states for cause in _mapping(state.get("throttled")).get(key) or ()
        )
        if causes:
            notes.append(f"held back {when}: {', '.join(causes)}.")
    # Later bundles find the load that the earlier ones made.
    first = min(rows, key=lambda row: row.result.created).result.machine
    load, cores = _mapping(first.get("before")).get("load_average"), first.get("cores")
    if isinstance(load, (list, tuple)) and load and isinstance(cores, int) and load[0] > _BUSY * cores:
        notes.append(f"busy with something else when the measurements began (load {load[0]:g} on {cores} cores).")
    return notes


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
