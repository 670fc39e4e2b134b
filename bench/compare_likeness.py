"""Whether results may be compared at all: everything that must be alike, and by name and value what is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.records import Result

# Memory as the kernel counts it changes a little with the kernel; another size of board is another machine.
_MEMORY_TOLERANCE = 0.05
_BUSY_PER_CORE = 0.5
_NEVER_ALLOWED = "machine.emulated"  # the time of an emulated machine is no time to hold against a real one's


@dataclass(frozen=True)
class Field:
    """One thing that must be the same on both sides.

    Attributes:
        name: what `--allow` calls it.
        value: of a result; None where it was not recorded.
    """

    name: str
    value: Callable[[Result], Any]


@dataclass(frozen=True)
class Difference:
    """A field that differs.

    Attributes:
        field: its name.
        baseline: the value or values met there.
        candidate: the value or values met there.
    """

    field: str
    baseline: tuple[Any, ...]
    candidate: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.field}: {_listed(self.baseline)} against {_listed(self.candidate)}"


def _in(where: str, key: str) -> Callable[[Result], Any]:
    return lambda result: getattr(result, where).get(key)


def _fields(where: str, *keys: str, prefix: str = "") -> list[Field]:
    return [Field(f"{prefix}{key}", _in(where, key)) for key in keys]


def _state(key: str) -> Callable[[Result], Any]:
    return lambda result: _mapping(result.machine.get("before")).get(key)


def _data(result: Result) -> str | None:
    data = _mapping(result.protocol.get("data"))
    sha256 = data.get("sha256")
    return None if sha256 is None else f"{data.get('name')}, {data.get('images')} images, {str(sha256)[:12]}"


FIELDS: tuple[Field, ...] = (
    Field("task", lambda result: result.bundle.get("task", "detect")),
    Field("engine", _in("bundle", "engine")),
    Field("precision", _in("bundle", "precision")),
    Field("imgsz", lambda result: "x".join(map(str, result.bundle.get("imgsz", ())))),
    Field("library", lambda result: f"{result.executed.get('library')} {result.executed.get('version')}"),
    Field("threads", _in("protocol", "threads")),
    Field("data", _data),
    *_fields("protocol", "timed_images", "warmup", "conf", "iou", "max_det", "top_k", "accuracy"),
    Field("resizer", lambda result: "OpenCV" if "opencv" in result.tools else "numpy or Pillow"),
    *_fields("machine", "model", "processor", "architecture", "pointer_bits", "cores", "cpu_flags", prefix="machine."),
    *_fields("machine", "memory_bytes", "page_bytes", prefix="machine."),
    Field("machine.max_frequency_hz", _state("max_frequency_hz")),
    Field("machine.governor", _state("governor")),
    Field("machine.emulated", _in("machine", "emulated")),
)

# Worth a line, not a refusal.
_REMARKED: tuple[Field, ...] = (
    Field("bundle", lambda result: f"{result.bundle.get('name')} ({str(result.bundle.get('sha256'))[:12]})"),
    Field("device", lambda result: result.device),
    Field("model_cache", _in("executed", "model_cache")),
    *_fields("machine", "system", "kernel"),
    *_fields("protocol", "min_seconds", "min_samples", "affinity"),
    *_fields("tools", "python", "numpy", "pillow", "opencv"),
)


def field_names() -> list[str]:
    """What `--allow` takes: every field that may differ, and "machine" for all that begin with it."""
    return [*(field.name for field in FIELDS if field.name != _NEVER_ALLOWED), "machine"]


def differences(
    baseline: Sequence[Result], candidate: Sequence[Result], allowed: Sequence[str] = ()
) -> list[Difference]:
    """The fields that keep results from being compared: each must be alike over all results of both sides.

    Args:
        baseline: at least one.
        candidate: at least one.
        allowed: fields that may differ, of `field_names`.
    """
    checked = [field for field in FIELDS if not _is_allowed(field, allowed)]
    return _differing(checked, baseline, candidate)


def remarks(baseline: Sequence[Result], candidate: Sequence[Result], allowed: Sequence[str] = ()) -> list[str]:
    """What differs without forbidding the comparison, allowed fields among it, and what makes the times doubtful."""
    met = [field for field in FIELDS if _is_allowed(field, allowed)]
    lines = [f"differs, {difference}" for difference in _differing([*met, *_REMARKED], baseline, candidate)]
    if any(result.machine.get("emulated") for result in (*baseline, *candidate)):
        lines.append("emulated: the times say nothing about a real device")
    for side, results in (("baseline", baseline), ("candidate", candidate)):
        busy = [load for load in map(_foreign_load, results) if load is not None]
        if busy:
            lines.append(f"{side}: {len(busy)} of {len(results)} runs began on a busy machine (load {max(busy):g})")
    return lines


def held_back(result: Result) -> list[str]:
    """Why the machine ran slower than it can while this was measured, as far as it is known: such a run is no measure.

    Returns:
        The firmware's words, e.g. "undervoltage"; empty where there is nothing known. What occurred before the run
        began, and not while it lasted, does not count.
    """
    before, after = (_mapping(_mapping(result.machine.get(when)).get("throttled")) for when in ("before", "after"))
    during = [_mapping(_mapping(reading).get("throttled")) for reading in result.machine.get("during") or ()]
    causes = [cause for state in (before, *during, after) for cause in state.get("now") or ()]
    if before and after:
        earlier = before.get("occurred") or ()
        causes += [cause for cause in after.get("occurred") or () if cause not in earlier]
    return list(dict.fromkeys(map(str, causes)))


def _is_allowed(field: Field, allowed: Sequence[str]) -> bool:
    named = field.name in allowed or field.name.partition(".")[0] in allowed
    return named and field.name != _NEVER_ALLOWED


def _differing(fields: Sequence[Field], baseline: Sequence[Result], candidate: Sequence[Result]) -> list[Difference]:
    found = []
    for field in fields:
        first = [field.value(result) for result in baseline]
        second = [field.value(result) for result in candidate]
        if any(not _alike(field.name, first[0], value) for value in (*first[1:], *second)):
            found.append(Difference(field.name, _distinct(first), _distinct(second)))
    return found


def _alike(name: str, first: Any, second: Any) -> bool:
    if name == "machine.memory_bytes" and isinstance(first, int) and isinstance(second, int):
        return abs(first - second) <= _MEMORY_TOLERANCE * max(first, second)
    return bool(first == second)


def _distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(value for index, value in enumerate(values) if value not in values[:index])


def _listed(values: Sequence[Any]) -> str:
    return " and ".join("not recorded" if value is None else _text(value) for value in values)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={entry}" for key, entry in value.items())
    return str(value)


def _foreign_load(result: Result) -> float | None:
    load, cores = _state("load_average")(result), result.machine.get("cores")
    busy = isinstance(load, (list, tuple)) and load and isinstance(cores, int) and load[0] > _BUSY_PER_CORE * cores
    return float(load[0]) if busy else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
