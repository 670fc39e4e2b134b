"""The document of the runtime study: its tables, how it was measured, and the verdicts on top."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from bench.studies.runtime_equality import CONF, IOU, MAX_DET, SCORE_TARGET, SCORING_CONF, Equality
from bench.studies.runtime_latency import Cell, Spread, Timing, ceil_to, floor_to, overhead
from bench.studies.runtime_memory import MEMORY_IMAGES, median_s
from bench.studies.runtime_models import ENGINE_NAMES
from bench.studies.runtime_verdicts import Findings, cell_name, executed, verdicts
from deploy.dataset import DetectionDataset
from deploy.runtime.resize import OPENCV_SIDE
from deploy.student import Student

_TOOLS = (
    "ultralytics",
    "torch",
    "onnxruntime",
    "openvino",
    "nncf",
    "ai-edge-litert",
    "litert-torch",
    "numpy",
    "pillow",
)


@dataclass(frozen=True)
class Setting:
    """How the study was run."""

    command: str
    threads: int
    rounds: int
    per_round: int
    sources: Sequence[tuple[Student, DetectionDataset]]
    calibration_images: int
    machine: Mapping[str, Any]
    load_before: Sequence[float] | None


def document(setting: Setting, findings: Findings) -> str:
    """The whole page."""
    judged = verdicts(findings)
    missed = [one for one in judged if not one.holds]
    lines = [
        "# From image to detections",
        "",
        f"Bundles of this project by `Detector` against ultralytics {version('ultralytics')}'s `predict` on its own "
        "exports of the same weights for the same runtime and precision.",
        "",
        "## Targets",
        "",
        f"{len(judged) - len(missed)} of {len(judged)} met"
        + (f", {len(missed)} missed: " + "; ".join(one.what for one in missed) + "." if missed else "."),
        "",
        "| | target | measured | |",
        "| --- | ---: | ---: | --- |",
        *(f"| {one.what} | {one.target} | {one.met} | {one.word} |" for one in judged),
        "",
        *(_latency(setting, findings.cells) if findings.cells else []),
        *(_equality(findings.equalities) if findings.equalities else []),
        *(_memory(findings) if findings.memories or findings.imports_s else []),
        *_method(setting),
    ]
    return "\n".join(lines) + "\n"


def _latency(setting: Setting, cells: Sequence[Cell]) -> list[str]:
    return [
        "## Latency",
        "",
        f"From a decoded image in memory to boxes, {setting.threads} threads, {setting.rounds} rounds of "
        f"{setting.per_round} images, in ms. The medians of the rounds are given as their median and range.",
        "",
        "| | contender | p50 | p90 | p99 | medians of rounds | images/s | pre | inference | post |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(line for cell in cells for line in _latency_lines(cell)),
        "",
        "`pre`, `inference` and `post` are medians of a pass of their own: ours by the Detector's public stages, "
        "ultralytics' as its `Results.speed` gives them. They need not add up: `predict` spends time between them.",
        "",
        "### Total over the engine's own call",
        "",
        "In the same process, each image was detected in, and the runtime library's own call was then repeated alone "
        "on the same input (that of `InferenceSession`, `InferRequest` or `Interpreter`): all that is not the "
        "network is in the ratio. Median over a round's images; median and range of the rounds.",
        "",
        "| | contender | engine's call, ms | total over it |",
        "| --- | --- | ---: | ---: |",
        *(line for cell in cells for line in _overhead_lines(cell)),
        "",
    ]


def _latency_lines(cell: Cell) -> Iterator[str]:
    for timing in cell.timings:
        p50, p90, p99 = (ceil_to(1e3 * timing.percentile_s(percent), 2) for percent in (50, 90, 99))
        stages = " | ".join(f"{1e3 * stage:.2f}" for stage in timing.stage_medians_s) or " | | "
        yield (
            f"| {cell_name(cell)} | {_contender(timing)} | {p50} | {p90} | {p99} | "
            f"{_spread(Spread.of(timing.round_medians_s), 1e3)} | {floor_to(timing.images_per_s, 1)} | {stages} |"
        )
    for name, reason in cell.failures.items():
        yield f"| {cell_name(cell)} | {name} | did not run: {reason} | | | | | | | |"


def _contender(timing: Timing) -> str:
    told = [executed(timing)] if executed(timing) else []
    threads = timing.facts.get("threads")
    if threads is not None:
        told.append(f"{threads} threads" if threads else "threads left to the library")
    told.append(f"{timing.threads_of_process} in the process")
    return f"{timing.entrant.name} ({', '.join(told)})"


def _spread(spread: Spread, factor: float) -> str:
    return f"{factor * spread.median:.2f} [{factor * spread.low:.2f}, {factor * spread.high:.2f}]"


def _overhead_lines(cell: Cell) -> Iterator[str]:
    for timing in cell.timings:
        found = overhead(timing)
        if found is not None:
            call = ceil_to(1e3 * float(np.median(timing.calls_s)), 2)
            met = f"{ceil_to(found.median, 3)} [{ceil_to(found.low, 3)}, {ceil_to(found.high, 3)}]"
            yield f"| {cell_name(cell)} | {timing.entrant.name} | {call} | {met} |"


def _equality(equalities: Sequence[Equality]) -> list[str]:
    return [
        "## The same detections",
        "",
        "FP32 bundles against `predict(rect=False)` of the checkpoint by PyTorch on the same decoded arrays "
        f"(IoU {IOU:g}, at most {MAX_DET} boxes, one class per cell, as `predict` does it). At score {CONF:g}, "
        "detections of one class that overlap are paired one to one, the nearest first; the differences are the "
        f"largest over all pairs. At score {SCORING_CONF:g}, the detections of both are scored by this project's mAP "
        "code. Ties are detections "
        f"that one side alone has, with a score within {SCORE_TARGET:g} of the threshold.",
        "",
        "| | images | ours | theirs | ties | differ | box, px | score | mAP50-95 ours | theirs | points |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_equality_line(one) for one in equalities),
        "",
        *_unmatched(equalities),
    ]


def _equality_line(one: Equality) -> str:
    name = f"{one.dataset} {one.imgsz} px {ENGINE_NAMES[one.engine]}"
    if one.failure:
        return f"| {name} | not compared: {one.failure} | | | | | | | | | |"
    return (
        f"| {name} | {one.images} | {one.ours} | {one.theirs} | {len(one.ties)} | {len(one.different)} | "
        f"{ceil_to(one.box_px, 4)} | {ceil_to(one.score, 6)} | {100 * one.map_ours:.3f} | {100 * one.map_theirs:.3f} | "
        f"{one.map_points:+.3f} |"
    )


def _unmatched(equalities: Sequence[Equality]) -> list[str]:
    lines = [
        f"- {one.dataset} {one.imgsz} px {ENGINE_NAMES[one.engine]}: image {alone.image}, only {alone.side}, class "
        f"{alone.class_id}, score {alone.score:.6f}" + (" (a tie at the threshold)" if alone.at_threshold else "")
        for one in equalities
        for alone in one.unmatched
    ]
    return ["What one side alone has:", "", *lines, ""] if lines else ["Neither side has one that the other lacks.", ""]


def _memory(findings: Findings) -> list[str]:
    lines = [
        "## Memory and start",
        "",
        f"Peak resident memory (VmHWM, 1 MB = 10^6 bytes) of a fresh process that opens an INT8 model and detects in "
        f"{MEMORY_IMAGES} image files.",
        "",
        "| | contender | peak, MB | OpenCV imported |",
        "| --- | --- | ---: | --- |",
    ]
    for one in findings.memories:
        figures = one.failure or ceil_to(one.peak_rss_bytes / 1e6, 1)
        opencv = "yes" if one.opencv else "no"
        lines.append(f"| {one.imgsz} px {ENGINE_NAMES[one.engine]} INT8 | {one.name} | {figures} | {opencv} |")
    if findings.imports_s:
        times = findings.imports_s
        lines += [
            "",
            f"`import deploy.runtime` takes {ceil_to(median_s(times), 3)} s: the median of {len(times)} fresh "
            f"processes, {ceil_to(min(times), 3)} to {ceil_to(max(times), 3)} s. No engine is imported by it.",
        ]
    return [*lines, ""]


def _method(setting: Setting) -> list[str]:
    machine = setting.machine
    load = "not told" if setting.load_before is None else " ".join(f"{one:.2f}" for one in setting.load_before)
    return [
        "## How it was measured",
        "",
        "```",
        setting.command,
        "```",
        "",
        "- Each contender runs in a fresh process of its own, on as many processors as threads are asked for. They "
        "take turns, round by round, and who begins changes each round; all but the one at work are stopped by "
        "SIGSTOP, since an engine's idle threads may wait by spinning. Ratios are paired: of the two rounds that ran "
        "in turn on the same images.",
        f"- Both get the same decoded arrays (ultralytics as BGR, as OpenCV reads them), score {CONF:g}, IoU {IOU:g}, "
        f"at most {MAX_DET} boxes. ultralytics is called as its users do: one `predict(array, imgsz, conf, iou, "
        "max_det, verbose=False)` per image. Before the first round both detect in every image once.",
        f"- INT8 of both is calibrated on the same {setting.calibration_images} or fewer training images.",
        "- Threads: ultralytics' ONNX Runtime and OpenVINO take all processors that the process may use, here the "
        "number asked for. Its LiteRT takes `min(8, processors - 1)`, on two processors one; the row with the number "
        "asked for sets that constant by hand.",
        f"- The bundle as it comes resizes by OpenCV up to {OPENCV_SIDE} px and by numpy above, unless the program has "
        "imported OpenCV; `numpy` and `opencv` are the same bundle made to do the other (`EDGE_DISTILL_RESIZE`), as "
        "ultralytics resizes by OpenCV. `first load` fills the cache of opened models, the rows below it open the "
        "model from there. `f32` and `bf16` set the engine option "
        "`inference_precision`.",
        "- OpenVINO on a processor with bf16 instructions executes what is float in bf16, silently, unless told "
        "otherwise. Rows say what was executed. `f32` of ultralytics is forced by hand: `predict` has no argument "
        "for it.",
        "- Percentiles and memory are rounded up, throughput and ratios that should be high are rounded down; verdicts "
        "use the unrounded figures.",
        *(
            f"- {dataset.name}: {len(dataset)} images, SHA-256 `{dataset.sha256}`; weights "
            f"`{student.checkpoint.name}`, SHA-256 `{student.sha256}`."
            for student, dataset in setting.sources
        ),
        f"- Machine: {machine['model']}, {machine['cores']} cores, {machine['architecture']}, {machine['system']}, "
        f"{' '.join(machine['cpu_flags'])}. Load average before: {load}.",
        f"- Tools: Python {platform.python_version()}, "
        + ", ".join(f"{tool} {version(tool)}" for tool in _TOOLS)
        + ".",
    ]
