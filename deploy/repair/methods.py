"""Weight repair: a float network whose weights bear rounding to INT8 better, for every target alike.

It works on the network before it is compiled, so each target quantizes the repaired weights in its own way. Every
method is tried on its own and kept only if it brings the simulated INT8 nearer to the float student on calibration
images that it did not see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from deploy.calibration import CalibrationList
from deploy.cli import log
from deploy.errors import CalibrationError, ExportError
from deploy.graph import Graph
from deploy.graph_classify import ExportedLogits
from deploy.repair.adaround import round_adaptively
from deploy.repair.bias import correct_bias
from deploy.repair.equalisation import equalise
from deploy.repair.fake_quant import Range
from deploy.repair.names import DEFAULT_METHODS, METHOD_NAMES, MOVE_RANGES, check_methods
from deploy.repair.qat import Training, train
from deploy.repair.task import Task, is_better, make_task

LEAST_IMAGES = 4


@dataclass(frozen=True)
class Repaired:
    """A repaired student.

    Attributes:
        graph: as the one that was given, with another network.
        record: for the manifest: methods, seed, images, and the distance of the simulated INT8 from the float student
            on the held-out images (see `deploy.repair.distance`) before, after each method, and whether it was kept.
    """

    graph: Graph
    record: dict[str, Any]


# What each makes of a network with its ranges, and what it has to say of it.
Method = Callable[[Task, nn.Module, Sequence[Range], Training], tuple[nn.Module, Mapping[str, Any]]]


def repair(
    graph: Graph,
    calibration: CalibrationList,
    imgsz: int,
    methods: Sequence[str] = DEFAULT_METHODS,
    seed: int = 0,
    training: Training | None = None,
) -> Repaired:
    """Repair the weights of a student for INT8.

    Args:
        graph: the float student; left as it is.
        calibration: training images; no labels are needed.
        imgsz: side of the deployed input in pixels.
        methods: some of `METHOD_NAMES`; they run in that order.
        seed: the same images, seed and threads give the same weights, bit for bit.
        training: how long "qat" trains; default `Training()`.

    Raises:
        ExportError: an unknown method, or a student whose layers cannot be changed.
        CalibrationError: fewer than `LEAST_IMAGES` images.
    """
    chosen = check_methods(methods)
    if isinstance(graph.network, ExportedLogits):
        raise ExportError("the weights of an exported program (.pt2) cannot be repaired: deploy it as it is")
    if len(calibration) < LEAST_IMAGES:
        raise CalibrationError(
            f"{calibration.source} gives {len(calibration)} calibration images, weight repair needs at least "
            f"{LEAST_IMAGES}: give more, or deploy the student as it is"
        )
    task = make_task(graph, calibration, imgsz, seed)
    how = training or Training()
    network, ranges, steps, before, after = _repaired_network(task, chosen, how)
    record = {
        "methods": list(chosen),
        "kept": [name for name in chosen if steps[name]["kept"]],
        "seed": seed,
        "imgsz": imgsz,
        "calibration_sha256": calibration.record()["list_sha256"],
        "images": len(task.images),
        "held_out": len(task.held_out),
        "distance_before": before,
        "distance_after": after,
        "steps": steps,
        "ranges": ranges,
        "training": asdict(how) if "qat" in chosen else None,
        "threads": torch.get_num_threads(),
    }
    return Repaired(replace(graph, network=network, ranges=ranges), record)


def _repaired_network(
    task: Task, methods: Sequence[str], training: Training
) -> tuple[nn.Module, tuple[tuple[float, float], ...] | None, dict[str, Any], float, float]:
    network = task.graph.network
    ranges = task.ranges(network)
    before = after = task.distance(network, ranges)
    steps: dict[str, Any] = {}
    for name in methods:
        start_s = time.perf_counter()
        candidate, notes = METHODS[name](task, network, ranges, training)
        keeps = task.keeps_ranges and name not in MOVE_RANGES
        candidate_ranges = ranges if keeps else task.ranges(candidate)
        distance = task.distance(candidate, candidate_ranges)
        kept = is_better(distance, after)
        steps[name] = {"distance": distance, "kept": kept, **notes}
        log(
            f"repair by {name}: distance of the simulated INT8 on {len(task.held_out)} held-out images {after:.4f} to "
            f"{distance:.4f}, {'kept' if kept else 'not kept'} ({time.perf_counter() - start_s:.0f} s)"
        )
        if kept:
            network, ranges, after = candidate.eval().requires_grad_(False), candidate_ranges, distance
    brought = tuple((one.low, one.high) for one in ranges) if task.keeps_ranges else None
    return network, brought, steps, before, after


def _equalise(task: Task, network: nn.Module, ranges: object, training: object) -> tuple[nn.Module, dict[str, Any]]:
    equalised, pairs = equalise(network, task.images[:1].float() / 255)
    return equalised, {"pairs": pairs}


def _adaround(
    task: Task, network: nn.Module, ranges: Sequence[Range], training: object
) -> tuple[nn.Module, dict[str, Any]]:
    return round_adaptively(task.graph.network, network, task.layerwise_images, ranges, task.seed), {}


def _bias(
    task: Task, network: nn.Module, ranges: Sequence[Range], training: object
) -> tuple[nn.Module, dict[str, Any]]:
    return correct_bias(task.graph.network, network, task.layerwise_images, ranges), {}


METHODS: Mapping[str, Method] = dict(zip(METHOD_NAMES, (_equalise, train, _adaround, _bias), strict=True))
