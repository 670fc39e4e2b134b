"""What a result read from disk must be before a report relies on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bench.records import Accuracy, Result, TopAccuracy


def check_kinds(result: Result) -> None:
    """Refuse a result whose fields are of a kind that no bench wrote, before any of them is used.

    Raises:
        TypeError: a field of another kind.
        ValueError: a figure out of its range.
    """
    for name in ("bundle", "machine", "protocol", "executed", "tools"):
        if not isinstance(getattr(result, name), Mapping):
            raise TypeError(f"{name} is {type(getattr(result, name)).__name__}, expected names and values")
    if not isinstance(result.created, str):
        raise TypeError(f"created is {result.created!r}, expected a time")
    total = result.latency.total_s()
    if not total or not all(0 < seconds < math.inf for seconds in (*total, float(result.first_inference_s))):
        raise ValueError("latency samples are missing or not positive numbers")
    for name, figure in (
        ("load_s", result.load_s),
        ("peak_rss_bytes", result.peak_rss_bytes),
        ("size_bytes", result.bundle["size_bytes"]),
    ):
        if not 0 < figure < math.inf:
            raise ValueError(f"{name} is {figure!r}, expected a positive number")
    _check_machine(result.machine)
    _check_parts(result)
    if result.accuracy is not None:
        for name in ("dataset", "dataset_sha256"):
            _expect(f"accuracy.{name}", getattr(result.accuracy, name), str)
        figures = [*_main_figures(result.accuracy), *result.accuracy.per_class.values()]
        if not all(0.0 <= figure <= 1.0 for figure in figures):
            raise ValueError("an accuracy is not within 0..1")


def _check_parts(result: Result) -> None:
    """Refuse what schema 3 added if it is there and lacks a figure that is read by name."""
    _expect("memory", result.memory, Mapping)
    _expect("cpu", result.cpu, Mapping)
    _expect("energy", result.energy, Mapping, type(None))
    _expect("throughput", result.throughput, Mapping, type(None))
    needed = {"cpu": ("user_s", "system_s"), "energy": ("joules",), "throughput": ("fps", "streams")}
    for name, figures in needed.items():
        part: Mapping[str, Any] | None = getattr(result, name)
        for figure in figures if part else ():
            _expect(f"{name}.{figure}", (part or {}).get(figure), int, float)


def _main_figures(accuracy: Accuracy | TopAccuracy) -> tuple[float, float]:
    if isinstance(accuracy, TopAccuracy):
        return accuracy.top1, accuracy.top5
    return accuracy.map50_95, accuracy.map50


def _check_machine(machine: Mapping[str, Any]) -> None:
    """Refuse facts that the report reads by name and that are not as `bench.machine` writes them."""
    _expect("machine.emulated", machine.get("emulated"), bool, type(None))
    states = [("machine", machine)]
    for when in ("before", "after"):
        _expect(f"machine.{when}", machine.get(when), Mapping, type(None))
        states.append((f"machine.{when}", machine.get(when) or {}))
    _expect("machine.during", machine.get("during"), list, type(None))
    for reading in machine.get("during") or ():
        _expect("machine.during", reading, Mapping)
        states.append(("machine.during", reading))
    for where, state in states:
        load, throttled = state.get("load_average"), state.get("throttled")
        _expect(f"{where}.load_average", load, list, tuple, type(None))
        for value in load or ():
            _expect(f"{where}.load_average", value, int, float)
        _expect(f"{where}.throttled", throttled, Mapping, type(None))
        for key in ("now", "occurred"):
            _expect(f"{where}.throttled.{key}", (throttled or {}).get(key), list, tuple, type(None))


def _expect(name: str, value: object, *kinds: type) -> None:
    if not isinstance(value, kinds):
        expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"{name} is {value!r:.60}, expected {expected}")
