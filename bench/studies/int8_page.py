"""The page of the INT8 study: verdicts, one table a runtime, ratios, and how it was measured."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from bench.studies.int8_networks import BUNDLE, CHECKPOINT, PEER, TRUE_FLOAT, ULTRALYTICS, Network
from bench.studies.runtime_latency import OURS, Entrant, Spread, Timing, ceil_to, floor_to, speedup
from bench.studies.runtime_memory import MEMORY_IMAGES
from bench.studies.runtime_models import ENGINE_NAMES
from bench.studies.runtime_verdicts import Verdict
from bench.studies.scoring import TOOLS
from deploy.dataset import DetectionDataset
from deploy.student import Student

# Largest loss of mAP50-95 in points, and least speed of INT8 over FP32 executed in float32 at 640 px.
DROP_TARGET = 0.4
SPEEDUP_TARGETS: Mapping[str, float] = {"openvino": 2.4, "onnx": 2.0, "tflite": 3.5}
SPEEDUP_IMGSZ = 640


@dataclass(frozen=True)
class Setting:
    """How the study was run."""

    command: str
    arguments: argparse.Namespace
    student: Student
    repaired: Student | None
    dataset: DetectionDataset
    machine: Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """What was measured, as `bench.studies.int8_parts` gives it; a part that was not is empty.

    Attributes:
        accuracy: by name of the network.
        latency: by engine and threads.
        memory: by name of the network.
        audit: by name of the network.
    """

    accuracy: dict[str, Any] = field(default_factory=dict)
    latency: dict[tuple[str, int], Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    audit: dict[str, Any] = field(default_factory=dict)

    def timing(self, engine: str, threads: int, name: str) -> Timing | None:
        """The seconds of one network's inference; None where it was not measured."""
        found = self.latency.get((engine, threads), {}).get("networks", {}).get(name)
        if found is None:
            return None
        return Timing(Entrant(name, OURS, {}), tuple(map(tuple, found["rounds_s"])), facts=found["facts"])


def document(setting: Setting, networks: Sequence[Network], figures: Figures) -> str:
    """The whole page."""
    judged = list(verdicts(setting, networks, figures))
    met = sum(one.holds for one in judged)
    arguments = setting.arguments
    lines = [
        f"# INT8: {setting.dataset.name}",
        "",
        f"{setting.student.name}, {len(setting.dataset)} images, {arguments.imgsz} px. Bundles of this project and "
        f"ultralytics {version('ultralytics')}'s exports of the same weights, INT8 of both calibrated on the same "
        f"{arguments.calibration_images} training images or fewer.",
        "",
        "## Targets",
        "",
        f"{met} of {len(judged)} met.",
        "",
        "| | target | measured | |",
        "| --- | ---: | ---: | --- |",
        *(f"| {one.what} | {one.target} | {one.met} | {one.word} |" for one in judged),
        "",
        *_checkpoint(figures),
        *(line for engine in arguments.engines for line in _table(setting, engine, networks, figures)),
        *_reading(),
        *_speedups(setting, networks, figures),
        *_method(setting, figures),
    ]
    return "\n".join(lines) + "\n"


def verdicts(setting: Setting, networks: Sequence[Network], figures: Figures) -> Iterator[Verdict]:
    """Every target that was measured, judged by its unrounded figure."""
    ours = [one for one in networks if one.is_ours and one.precision == "int8"]
    for network in ours:
        if network.failure:
            yield Verdict(f"{network.name} was not made ({network.failure})", "", "none", False)
            continue
        scored = figures.accuracy.get(network.name)
        if scored:
            lost = -100 * scored["from_checkpoint"]["difference"]
            yield Verdict(
                f"{network.name}: points of mAP50-95 lost", f"≤ {DROP_TARGET:g}", f"{lost:.2f}", lost <= DROP_TARGET
            )
        if scored and "from_ultralytics" in scored:
            more = 100 * scored["from_ultralytics"]["difference"]
            what = f"{network.name}: points of mAP50-95 above ultralytics' INT8"
            yield Verdict(what, "≥ 0", _interval(scored["from_ultralytics"]), more >= 0)
    if setting.arguments.imgsz != SPEEDUP_IMGSZ:
        return
    for network in ours:
        target = SPEEDUP_TARGETS[network.engine]
        for threads, ratio in _ratios(setting, network, figures):
            what = f"{network.name} over FP32, {_threads(threads)}"
            yield Verdict(
                what, f"≥ {target:g}", _spread(ratio), ratio.median >= target, ratio.low < target <= ratio.high
            )


def _ratios(setting: Setting, network: Network, figures: Figures) -> Iterator[tuple[int, Spread]]:
    """How many times faster than the FP32 bundle of its runtime, by threads."""
    whole = Network(network.engine, BUNDLE, "fp32").name
    for threads in setting.arguments.threads:
        quick, slow = (figures.timing(network.engine, threads, name) for name in (network.name, whole))
        if quick is not None and slow is not None:
            yield threads, speedup(quick, slow)


def _checkpoint(figures: Figures) -> list[str]:
    if CHECKPOINT not in figures.accuracy:
        return []
    scored = figures.accuracy[CHECKPOINT]
    return [
        f"The {CHECKPOINT}, float on the same square input: mAP50-95 {100 * scored['map50_95']:.2f}, mAP50 "
        f"{100 * scored['map50']:.2f}.",
        "",
    ]


def _table(setting: Setting, engine: str, networks: Sequence[Network], figures: Figures) -> Iterator[str]:
    threads = setting.arguments.threads
    head = ["", "mAP50-95", "mAP50", "from the float checkpoint, points [95 %]", "damage %"]
    head += [f"p50 / p99 ms, {_threads(one)}" for one in threads] + ["MB", "peak RSS MB", "convolutions executed as"]
    yield from (f"## {ENGINE_NAMES[engine]}", "", f"| {' | '.join(head)} |")
    yield f"| --- | {'---: | ' * (len(head) - 2)}--- |"
    for network in (one for one in networks if one.engine == engine):
        label = f"{network.precision.upper()} {network.maker}"
        if network.failure:
            yield f"| {label} | not made: {network.failure} {'| ' * (len(head) - 2)}|"
            continue
        cells = [label, *_accuracy_cells(figures.accuracy.get(network.name))]
        cells += [_latency_cell(figures, engine, one, network.name) for one in threads]
        cells += [ceil_to(network.size_bytes / 1e6, 1), _memory_cell(figures.memory.get(network.name))]
        yield f"| {' | '.join([*cells, _audit_cell(network, figures)])} |"
        forced = f"{network.name}, {TRUE_FLOAT}"
        if any(figures.timing(engine, one, forced) for one in threads):
            cells = [_latency_cell(figures, engine, one, forced) for one in threads]
            yield f"| {label}, {TRUE_FLOAT} | | | | | {' | '.join(cells)} | | | |"
    yield ""


def _accuracy_cells(scored: Mapping[str, Any] | None) -> list[str]:
    if not scored:
        return [""] * 4
    damage = f"{scored['damage_percent']:.2f}" if "damage_percent" in scored else ""
    both = [f"{100 * scored[name]:.2f}" for name in ("map50_95", "map50")]
    return [*both, _interval(scored["from_checkpoint"]), damage]


def _latency_cell(figures: Figures, engine: str, threads: int, name: str) -> str:
    timing = figures.timing(engine, threads, name)
    if timing is None:
        return str(figures.latency.get((engine, threads), {}).get("failures", {}).get(name, ""))
    p50, p99 = (ceil_to(1e3 * timing.percentile_s(percent), 2) for percent in (50, 99))
    hint = timing.facts.get("precision_hint_executed")
    return f"{p50} / {p99}" + (f" ({hint})" if hint else "")


def _memory_cell(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    return str(found["failure"] or ceil_to(found["peak_rss_bytes"] / 1e6, 1))


def _audit_cell(network: Network, figures: Figures) -> str:
    found = figures.audit.get(network.name)
    if not found:
        return "" if network.is_ours else "not asked"
    if "failure" in found:
        return str(found["failure"])
    counts = ", ".join(f"{count} {name}" for name, count in found["convolutions"].items())
    return counts + ("" if found["passed"] else " (**not as claimed**)")


def _interval(change: Mapping[str, float]) -> str:
    return " ".join(
        [f"{100 * change['difference']:+.2f}", f"[{100 * change['low']:+.2f}, {100 * change['high']:+.2f}]"]
    )


def _spread(ratio: Spread) -> str:
    return f"{floor_to(ratio.median, 2)} [{floor_to(ratio.low, 2)}, {floor_to(ratio.high, 2)}]"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _reading() -> list[str]:
    return [
        "The interval is that of a paired bootstrap over the images. **Damage** is the confidence lost, invented or "
        "put on a box elsewhere, in percent of the float network's own (`deploy/agreement.py`): with few images it "
        "tells networks apart that mAP does not. It needs the raw outputs; exports with the decode inside have none.",
        "",
        "Latency is of one inference: of bundles the engine's call through `Detector`, its own quantization of pixels "
        f"and outputs included; of ultralytics' exports what its `predict` tells as `inference`; of the {PEER} the "
        "interpreter's call and the conversion of its input and output. In brackets the precision in which OpenVINO "
        "says that it executes what is float.",
        "",
    ]


def _speedups(setting: Setting, networks: Sequence[Network], figures: Figures) -> list[str]:
    rows = [
        f"| {network.name} | {_threads(threads)} | {_spread(ratio)} |"
        for network in networks
        if network.is_ours and network.precision == "int8"
        for threads, ratio in _ratios(setting, network, figures)
    ]
    rivals = [
        f"| {quick.entrant.name} over {ULTRALYTICS} | {_threads(threads)} | {_spread(speedup(quick, slow))} |"
        for network in networks
        if network.is_ours and network.precision == "int8"
        for threads in setting.arguments.threads
        if (quick := figures.timing(network.engine, threads, network.name)) is not None
        and (slow := figures.timing(network.engine, threads, Network(network.engine, ULTRALYTICS, "int8").name))
    ]
    if not rows:
        return []
    head = ["| times faster | | median and range of the rounds |", "| --- | --- | ---: |"]
    return [
        "## INT8 over FP32",
        "",
        "Against the FP32 bundle of the same runtime, executed in float32, paired round by round.",
        "",
        *head,
        *rows,
        *(["", "Against ultralytics' INT8 export for the same runtime:", "", *head, *rivals] if rivals else []),
        "",
    ]


def _method(setting: Setting, figures: Figures) -> list[str]:
    machine, arguments = setting.machine, setting.arguments
    loads = [one["load_before"] for one in figures.latency.values() if one.get("load_before")]
    load = ", ".join(f"{one[0]:.2f}" for one in loads) or "not told"
    weights = [("student", setting.student), ("repaired student", setting.repaired)]
    return [
        "## How it was measured",
        "",
        "```",
        setting.command,
        "```",
        "",
        "Measured in parts (`--only`), each kept in `--work`.",
        "",
        "- Accuracy: every network by the same letterbox (square), NMS (several classes per cell) and mAP code; the "
        f"interval by {arguments.resamples} resamples.",
        f"- Latency: {arguments.rounds} rounds of {arguments.images} images. All networks of a runtime take turns, "
        "each in a process of its own on as many processors as threads; who begins changes each round, and all but the "
        "one at work are stopped by SIGSTOP. Percentiles are rounded up, ratios down. The thread counts of "
        "ultralytics' LiteRT and ONNX Runtime and the row `executed in f32` are forced by hand, as it has no argument "
        "for them.",
        f"- Peak RSS: VmHWM (1 MB = 10^6 bytes) of a fresh process that detects in {MEMORY_IMAGES} image files with "
        f"{_threads(max(arguments.threads))}; ultralytics' holds torch.",
        "- Executed: `python -m deploy.audit` in a fresh process.",
        *(
            f"- Weights of the {what}: `{one.checkpoint.name}`, SHA-256 `{one.sha256}`."
            for what, one in weights
            if one is not None
        ),
        f"- Images and labels: SHA-256 `{setting.dataset.sha256}`.",
        f"- Machine: {machine['model']}, {machine['cores']} cores, {machine['architecture']}, {machine['system']}, "
        f"{' '.join(machine['cpu_flags'])}. Load average (1 minute) before the latency of each runtime: {load}.",
        f"- Tools: Python {platform.python_version()}, " + ", ".join(f"{tool} {version(tool)}" for tool in TOOLS) + ".",
    ]
