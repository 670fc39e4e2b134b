"""What a worker reported, read and checked: what comes from another machine is never taken on trust."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.errors import BenchError
from bench.measure import STAGES
from bench.wire import TopClasses, decode_classes, decode_detections
from deploy.runtime import Detections


@dataclass(frozen=True)
class Measured:
    """What a worker reported: its `measurement` record and, if it was asked for them, the findings of each image.

    Attributes:
        measurement: the record.
        detections: of each image, from a detector's bundle; else empty.
        classes: of each image, from a classifier's bundle; else empty.
        audit: what the engine executed (`deploy.runtime.audit.audit_record`), or `error`: why it does not tell; empty
            of a worker that does not audit.
    """

    measurement: Mapping[str, Any]
    detections: tuple[Detections, ...]
    classes: tuple[TopClasses, ...] = ()
    audit: Mapping[str, Any] = field(default_factory=dict)


def parsed(stdout: str, expected_images: int, where: str) -> Measured:
    """What a worker wrote.

    Args:
        stdout: all of it, with whatever a login script wrote before.
        expected_images: how many were to be scored.
        where: what an error begins with.

    Raises:
        BenchError: it is not whole, or not what a worker writes.
    """
    measurement: Mapping[str, Any] | None = None
    detections: list[Detections] = []
    classes: list[TopClasses] = []
    audit: Mapping[str, Any] = {}
    ended = False
    for line in stdout.splitlines():
        if not line.startswith('{"kind"'):
            continue  # a login script's words
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # the link was lost in the middle of a line
        if record["kind"] == "measurement":
            _check_measurement(record, where)
            measurement = record
        try:
            if record["kind"] == "detections":
                detections.append(decode_detections(record))
            elif record["kind"] == "classes":
                classes.append(decode_classes(record))
            elif record["kind"] == "audit":
                audit = checked_audit(record.get("audit"))
        except BenchError as error:
            raise BenchError(f"{where}{error}") from error
        ended = record["kind"] == "end"
    found = len(detections) + len(classes)
    if measurement is None or not ended or found != expected_images:
        raise BenchError(
            f"{where}the worker reported {found} of {expected_images} images and then stopped: run the bench again"
        )
    return Measured(measurement, tuple(detections), tuple(classes), audit)


def checked_audit(audit: Any) -> dict[str, Any]:
    """An audit as a worker reported it.

    Raises:
        BenchError: it is none, or a field of it is of another kind.
    """
    kinds: dict[str, Any] = {"passed": bool, "verdict": str, "convolutions": dict, "kinds": list, "notes": list}
    if isinstance(audit, dict):
        if isinstance(audit.get("error"), str):
            return audit
        if all(isinstance(audit.get(name), kind) for name, kind in kinds.items()):
            return audit
    raise BenchError(f"the worker's audit is {audit!r:.60}, expected {', '.join(kinds)}: run the bench again")


def _check_measurement(record: Mapping[str, Any], where: str) -> None:
    """Refuse a record that lacks a field, or has one of another kind than the worker writes."""
    mappings = ("latency", "machine", "executed", "tools", "protocol", "cpu", "memory")
    fields: dict[str, Any] = dict.fromkeys(mappings, dict)
    fields |= dict.fromkeys(("energy", "throughput"), (dict, type(None)))
    fields |= dict.fromkeys(("load_s", "first_inference_s", "peak_rss_bytes"), (int, float))
    for name, kind in fields.items():
        if not isinstance(record.get(name), kind):
            met = f"{name} = {record[name]!r:.60}" if name in record else f"no {name}"
            raise BenchError(f"{where}the worker's measurement has {met}: run the bench again")
    stages = record["latency"]
    counts = {len(samples) if _are_times(samples) else 0 for samples in stages.values()}
    if set(stages) != {f"{stage}_s" for stage in STAGES} or len(counts) != 1 or counts == {0}:
        raise BenchError(
            f"{where}the worker's measurement has latency {stages!r:.60}, expected equally many times above 0 s of "
            f"{', '.join(STAGES)}: run the bench again"
        )


def _are_times(samples: object) -> bool:
    return isinstance(samples, list) and all(
        isinstance(value, (int, float)) and 0 < value < math.inf for value in samples
    )
