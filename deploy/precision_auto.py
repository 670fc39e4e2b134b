"""`--precision auto`: build a student in every precision, measure them here, and keep the fastest that is accurate.

Which precision is fastest is a matter of the processor: where it has matrix instructions for bf16 (AMX), bf16 may be
faster than int8, and an int8 model that the runtime does not accelerate is slower than a float one. It is measured on
the machine that builds, with all the threads that this process may use. For another one build the precisions one by
one and compare them there: `python bench/run.py --device NAME --bundle …`.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deploy.build import DEFAULT_MAX_DROP_POINTS, build_bundle
from deploy.bundle import Bundle
from deploy.cli import log, one_line, whole_folder
from deploy.errors import ExportError, VerificationError
from deploy.runtime import default_threads
from deploy.runtime.audit import executed, judge
from deploy.search.latency import Timing, time_bundles
from deploy.steps import step
from deploy.student import Student
from deploy.target import Target

CANDIDATES = ("fp32", "bf16", "fp16", "int8")
# One no more than this much slower than the fastest is as fast: then the more accurate one is better.
AS_FAST = 1.02

TimeBundles = Callable[[Mapping[str, Path], str, int], Mapping[str, Timing]]


@dataclass(frozen=True)
class Candidate:
    """One precision as it was built and measured.

    Attributes:
        precision: as asked of the tool chain.
        p50_s: median latency of one inference in seconds.
        p99_s: 99th percentile of the same.
        ratio: its latency over that of the first candidate, measured in turns.
        drop_points: points (0..100) of accuracy below the student; None if not verified.
        size_bytes: of the bundle.
        executed: the audit's verdict.
        refused: why it cannot be chosen; None if it can.
    """

    precision: str
    p50_s: float
    p99_s: float
    ratio: float
    drop_points: float | None
    size_bytes: int
    executed: str
    refused: str | None = None


def build_auto_bundle(
    target: Target,
    student: Student,
    out: Path,
    *,
    precision: str = "auto",
    max_drop_points: float = DEFAULT_MAX_DROP_POINTS,
    time: TimeBundles = time_bundles,
    **asked: Any,
) -> Bundle:
    """Make the bundle of the precision that is fastest on this machine and loses no more than is allowed.

    Args:
        target: the format.
        student: what to compile.
        out: the bundle folder to make; must not exist.
        precision: "auto".
        max_drop_points: as for `build_bundle`.
        time: measures bundles side by side, see `deploy.search.latency.time_bundles`.
        **asked: what `build_bundle` takes besides.

    Returns:
        The bundle; its manifest's record `chosen` has the figures of all candidates.

    Raises:
        VerificationError: none is accurate enough.
        DeployError: as `build_bundle`.
    """
    if out.exists():
        raise ExportError(f"{out} already exists: choose another --out or remove it")
    threads = default_threads()
    with TemporaryDirectory(prefix="precisions-") as scratch:
        built, failed = _built(target, student, Path(scratch), max_drop_points, asked)
        if not built:
            raise VerificationError(f"no precision of {target.engine} can be used: {'; '.join(failed.values())}")
        names = ", ".join(built)
        with step(f"measuring {names} in turns, {threads} threads, on this machine alone"):
            timings = time({name: bundle.path for name, bundle in built.items()}, next(iter(built)), threads)
        candidates = [_candidate(one, timings[name], threads, max_drop_points) for name, one in built.items()]
        log(_table(candidates))
        for name, reason in failed.items():
            log(f"{name}: {reason}")
        best = choose(candidates)
        record = {
            "precision": best.precision,
            "measured_on": {"machine": platform.machine(), "system": platform.system(), "threads": threads},
            "max_drop_points": max_drop_points,
            "candidates": [asdict(one) for one in candidates],
            "failed": failed,
        }
        _keep(built[best.precision], out, record)
    verified = "" if best.drop_points is not None else ", by speed alone as nothing was verified"
    log(f"chosen: {best.precision}, {best.p50_s * 1e3:.1f} ms{verified}")
    return Bundle.open(out)


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The fastest that may be chosen; of those as fast as it the one that loses the least accuracy.

    Raises:
        VerificationError: none may be chosen.
    """
    usable = [one for one in candidates if one.refused is None]
    if not usable:
        reasons = "; ".join(f"{one.precision} {one.refused}" for one in candidates)
        raise VerificationError(f"no precision can be chosen ({reasons}): give a larger --max-drop")
    fastest = min(one.ratio for one in usable)
    as_fast = [one for one in usable if one.ratio <= AS_FAST * fastest]
    return min(as_fast, key=lambda one: (one.drop_points or 0.0, one.ratio))


def _built(
    target: Target, student: Student, folder: Path, max_drop_points: float, asked: Mapping[str, Any]
) -> tuple[dict[str, Bundle], dict[str, str]]:
    """A bundle per precision that the target has, and what is wrong with those that cannot be made or used."""
    built, failed = {}, {}
    for name in (one for one in CANDIDATES if one in target.precisions):
        try:
            # How much it loses is judged afterwards, so that the figures of all of them are known.
            built[name] = build_bundle(target, student, folder / name, precision=name, max_drop_points=100.0, **asked)
        except VerificationError as error:
            failed[name] = one_line(error)
    return built, failed


def _candidate(bundle: Bundle, timing: Timing, threads: int, max_drop_points: float) -> Candidate:
    verdict = judge(bundle.manifest, executed(bundle, threads, runs=1).operators)
    verified = bundle.manifest.verified
    drop = None if verified is None else float(verified["drop_points"])
    refused = None
    if drop is not None and drop > max_drop_points:
        refused = f"loses {drop:.2f} points, {max_drop_points:g} are allowed"
    elif not verdict.passed:
        refused = "is not executed as such"
    return Candidate(
        precision=bundle.manifest.precision,
        p50_s=timing.p50_s,
        p99_s=timing.p99_s,
        ratio=timing.ratio,
        drop_points=drop,
        size_bytes=bundle.size_bytes,
        executed=verdict.text,
        refused=refused,
    )


def _table(candidates: Sequence[Candidate]) -> str:
    lines = [f"{'precision':<10}{'p50 ms':>8}{'p99 ms':>8}{'speed':>8}{'drop':>8}{'MB':>7}  executed"]
    for one in candidates:
        drop = "-" if one.drop_points is None else f"{one.drop_points:z.2f}"
        figures = f"{one.p50_s * 1e3:>8.1f}{one.p99_s * 1e3:>8.1f}{1 / one.ratio:>7.2f}x{drop:>8}"
        refused = f" (refused: {one.refused})" if one.refused else ""
        lines.append(f"{one.precision:<10}{figures}{one.size_bytes / 1e6:>7.1f}  {one.executed}{refused}")
    return "\n".join(lines)


def _keep(bundle: Bundle, out: Path, record: Mapping[str, Any]) -> None:
    """Copy the chosen bundle to `out`, with the record of the choice in its manifest."""
    manifest = bundle.manifest
    with whole_folder(out) as folder:
        for name in manifest.files:
            shutil.copyfile(bundle.path / name, folder / name)
        replace(manifest, records={**manifest.records, "chosen": record}).write(folder)
