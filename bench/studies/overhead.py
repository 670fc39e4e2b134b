"""`python -m bench.studies.overhead`: what the harness costs beside the measurement itself.

Two questions. How much longer does `bench/run.py --device` take over SSH than the same run started by hand on that
machine? And how much longer do several devices at once take than the slowest of them? Both are asked of devices on this
machine, each behind an sshd of its own on loopback. Real devices share no processors, these do: so "the slowest" is
that of as many runs started by hand at the same moment, which share them as well, without a harness in between.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.errors import BenchError
from bench.inputs import bundle_data, load_images
from bench.machine import machine_facts, machine_state
from bench.measure import Job
from bench.studies.loopback import loopback_devices
from bench.studies.page_file import refuse_existing, run_study, write_page
from deploy.bundle import Bundle
from deploy.cli import log, positive_whole_number

RUN = Path(__file__).resolve().parents[1] / "run.py"
HAND_LIMIT, PARALLEL_LIMIT = 1.1, 1.2


@dataclass(frozen=True)
class Timings:
    """Wall times in seconds, one per turn; each turn has one of each kind.

    Attributes:
        first: the first bench over SSH, which sends code, bundle and images.
        bench: later ones.
        hand: `bench/run.py` started there.
        worker: `bench/measure.py` alone started there: no score, no report.
        alone: by device, a bench of that one.
        by_hand: as many runs as there are devices, started there at the same moment, until the slowest has ended.
        together: a bench of all at once.
        fps_alone: by device, images per second that it measured.
        fps_together: likewise, of the last turn.
    """

    first: float
    bench: Sequence[float]
    hand: Sequence[float]
    worker: Sequence[float]
    alone: dict[str, Sequence[float]]
    by_hand: Sequence[float]
    together: Sequence[float]
    fps_alone: dict[str, float]
    fps_together: dict[str, float]

    @property
    def hand_ratio(self) -> float:
        """Bench over SSH against the same by hand, by their medians."""
        return median(self.bench) / median(self.hand)

    @property
    def worker_ratio(self) -> float:
        """Bench over SSH against the worker alone, by their medians."""
        return median(self.bench) / median(self.worker)

    @property
    def together_ratio(self) -> float:
        """All at once against the slowest of as many by hand at once, by their medians."""
        return median(self.together) / median(self.by_hand)

    @property
    def alone_ratio(self) -> float:
        """All at once against the slowest device alone on the machine, by their medians."""
        return median(self.together) / max(map(median, self.alone.values()))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_study(_parser(), _study, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.overhead",
        description="Time benches over SSH on loopback against the same by hand, and several devices against one.",
    )
    add = parser.add_argument
    add("--bundle", type=Path, required=True, metavar="DIR", help="the bundle to measure")
    add("--data", type=Path, metavar="DATA.YAML", help="as for bench/run.py")
    add("--images", type=positive_whole_number, metavar="N", help="as for bench/run.py")
    add("--threads", type=positive_whole_number, default=1, metavar="N", help="of one inference (default: 1)")
    add("--samples", type=positive_whole_number, default=100, metavar="N", help="as for bench/run.py (default: 100)")
    add("--min-seconds", type=float, default=5.0, metavar="S", help="as for bench/run.py (default: 5)")
    add("--runs", type=positive_whole_number, default=5, metavar="N", help="turns (default: 5)")
    add("--devices", type=positive_whole_number, default=4, metavar="N", help="devices at once (default: 4)")
    add("--out", type=Path, metavar="FILE", help="markdown file to write (default: print to stdout)")
    return parser


def _study(arguments: argparse.Namespace, command: str) -> int:
    refuse_existing(arguments.out)
    state = machine_state()
    names = [f"loopback{index}" for index in range(1, arguments.devices + 1)]
    with (
        tempfile.TemporaryDirectory(prefix="edge-distill-overhead-") as folder,
        loopback_devices(names, Path(folder)) as inventory,
    ):
        timings = _timings(arguments, names, inventory, Path(folder))
    write_page(page(timings, arguments, {**machine_facts(), "before": state}, command), arguments.out)
    return 0


def _timings(arguments: argparse.Namespace, names: Sequence[str], inventory: Path, work: Path) -> Timings:
    given = ["--bundle", str(arguments.bundle), "--threads", str(arguments.threads)]
    given += ["--samples", str(arguments.samples), "--min-seconds", str(arguments.min_seconds)]
    given += [] if arguments.data is None else ["--data", str(arguments.data)]
    given += [] if arguments.images is None else ["--images", str(arguments.images)]
    job = work / "job.json"
    job.write_text(_job(arguments).to_json(), encoding="utf-8")
    counts = iter(range(10**9))

    def bench(what: str, *flags: str) -> tuple[float, dict[str, float]]:
        log(f"timing {what}")
        seconds, said = _timed(command(*flags))
        return seconds, {row["device"]: row["fps"] for row in json.loads(said[0])["results"]}

    def command(*flags: str) -> list[str]:
        return [str(RUN), *given, *flags, "--out", str(work / "out" / str(next(counts))), "--json"]

    def far(devices: Sequence[str]) -> tuple[float, dict[str, float]]:
        return bench(" and ".join(devices), "--device", ",".join(devices), "--inventory", str(inventory))

    turns = range(arguments.runs)
    first = far(names[:1])[0]
    over_ssh, hand, worker = [], [], []
    for _ in turns:
        over_ssh.append(far(names[:1])[0])
        hand.append(bench("the same by hand")[0])
        log("timing the worker alone")
        worker.append(_timed([str(RUN.with_name("measure.py")), str(job)])[0])
    for name in names[1:]:
        far([name])  # sends what the device lacks
    alone = {name: [far([name]) for _ in turns] for name in names}
    together, by_hand = [], []
    for _ in turns:
        together.append(far(names))
        log(f"timing {len(names)} by hand at the same moment")
        by_hand.append(_timed(*(command() for _ in names))[0])
    return Timings(
        first=first,
        bench=over_ssh,
        hand=hand,
        worker=worker,
        by_hand=by_hand,
        alone={name: [seconds for seconds, _ in runs] for name, runs in alone.items()},
        together=[seconds for seconds, _ in together],
        fps_alone={name: runs[-1][1][name] for name, runs in alone.items()},
        fps_together=together[-1][1],
    )


def _job(arguments: argparse.Namespace) -> Job:
    """What `bench/run.py` asks of its worker under the same arguments."""
    bundle = Bundle.open(arguments.bundle)
    images = load_images(arguments.data or bundle_data(bundle), arguments.images)
    return Job(
        bundle=str(arguments.bundle.absolute()),
        images=tuple(str(path.absolute()) for path in images.paths),
        threads=arguments.threads,
        samples=arguments.samples,
        min_seconds=arguments.min_seconds,
        accuracy=images.labelled,
    )


def _timed(*commands: Sequence[str]) -> tuple[float, list[str]]:
    """Wall time from the start of Python programs at the same moment to the end of the last, and what each printed."""
    with ThreadPoolExecutor(len(commands)) as pool:
        started = time.perf_counter()
        said = list(pool.map(_run, commands))
        return time.perf_counter() - started, said


def _run(words: Sequence[str]) -> str:
    done = subprocess.run(
        [sys.executable, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"{words[0]} ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def page(timings: Timings, arguments: argparse.Namespace, machine: dict[str, Any], command: str) -> str:
    """The document."""
    bundle = Bundle.open(arguments.bundle)
    load = (machine["before"].get("load_average") or ["unknown"])[0]
    cores, count = machine.get("cores"), len(timings.alone)
    lines = [
        "# What the harness costs",
        "",
        f"`{bundle.path.resolve().name}`, {bundle.manifest.input.width} px, {arguments.threads} threads, at least "
        f"{arguments.samples} samples and {arguments.min_seconds:g} s, {arguments.runs} turns. Machine: "
        f"{machine.get('processor')}, {cores} cores, {machine.get('system')}, kernel {machine.get('kernel')}, load "
        f"{load} before. Every device is this machine, behind an sshd of its own on loopback. Wall times of whole "
        "commands, from start to end.",
        "",
        "## One bundle over SSH, against the same by hand there",
        "",
        "| command | median, s | lowest to highest, s |",
        "| --- | ---: | ---: |",
        f"| `bench/run.py --device`, the first, which sends everything | {timings.first:.2f} | |",
        _line("`bench/run.py --device`, later", timings.bench),
        _line("`bench/run.py` started there", timings.hand),
        _line("the worker alone started there: no score, no report", timings.worker),
        "",
        _verdict("Against the same run by hand", timings.hand_ratio, HAND_LIMIT),
        f"Against the worker alone: {_ratio(timings.worker_ratio)}.",
        "",
        f"## {count} devices at once, against the slowest of {count} by hand at once",
        "",
        "| command | median, s | lowest to highest, s | images per second measured |",
        "| --- | ---: | ---: | ---: |",
        *(f"{_line(name, seconds)} {timings.fps_alone[name]:.1f} |" for name, seconds in timings.alone.items()),
        f"{_line(f'`bench/run.py` started there {count} times at the same moment', timings.by_hand)} |",
        f"{_line('all at once', timings.together)} "
        f"{' '.join(f'{timings.fps_together[name]:.1f}' for name in timings.alone)} |",
        "",
        _verdict("All at once against the slowest by hand at once", timings.together_ratio, PARALLEL_LIMIT),
        f"Against the slowest device alone: {_ratio(timings.alone_ratio)}. The devices share {cores} cores with each "
        "other and with the harness, which boards of their own would not: what they lose to each other is in both "
        "sides of the first ratio and in one side of the second.",
        "",
        "## Command",
        "",
        "```",
        command,
        "```",
        "",
    ]
    return "\n".join(lines)


def _line(what: str, seconds: Sequence[float]) -> str:
    return f"| {what} | {median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} |"


def _verdict(what: str, ratio: float, limit: float) -> str:
    met = "met" if ratio <= limit else "NOT met"
    return f"{what}: {_ratio(ratio)}; at most {limit:g} is asked: {met}."


def _ratio(value: float) -> str:
    """A ratio rounded up: never in our favour."""
    return f"{-(-value * 1000 // 1) / 1000:.3f}"


if __name__ == "__main__":
    sys.exit(main())
