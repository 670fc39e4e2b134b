"""What the INT8 study measures, a part at a time: accuracy, latency, memory, and what was executed as INT8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.accuracy import paired_bootstrap, score
from bench.errors import BenchError
from bench.machine import machine_state
from bench.remote import Site
from bench.studies.int8_networks import CHECKPOINT, ULTRALYTICS, Network
from bench.studies.runtime_latency import Entrant, Timing, measure_cell, round_indices
from bench.studies.runtime_memory import measure_memory
from bench.studies.runtime_process import WorkerProcess
from bench.studies.scoring import decoded_detections
from deploy.agreement import AgreementMeter
from deploy.bundle import Bundle
from deploy.cli import log
from deploy.dataset import DetectionDataset
from deploy.errors import DeployError
from deploy.graph import Graph
from deploy.runtime import Detections, Detector, default_threads, load_engine, read_image
from deploy.steps import step
from deploy.verify import checkpoint_detector, image_truths, scoring_detector
from devices import LOCAL, DeviceError, open_device

Figures = dict[str, Any]


def accuracy(
    networks: Sequence[Network], graph: Graph, dataset: DetectionDataset, imgsz: int, resamples: int
) -> Figures:
    """Of every network, by name: mAP in 0..1, the paired difference from the float checkpoint, and the damage.

    Damage (`deploy.agreement`, in percent) is told of bundles alone, whose raw outputs are those of the checkpoint. Of
    ultralytics' networks `ours_minus_it` is the difference of the bundle of the same runtime and precision from it.
    """
    images = [read_image(image.path) for image in dataset.images]
    truths = image_truths(dataset, [(image.shape[1], image.shape[0]) for image in images])
    reference = checkpoint_detector(graph, imgsz)
    with step(f"scoring {CHECKPOINT}"):
        inputs = [reference.preprocess(image) for image in images]
        expected = [reference.engine.infer(pixels) for pixels, _ in inputs]
        found = {
            CHECKPOINT: tuple(
                reference.postprocess(raw, geometry) for raw, (_, geometry) in zip(expected, inputs, strict=True)
            )
        }
    damages: dict[str, float] = {}
    for network in networks:
        if network.model is None:
            continue
        if network.is_ours:
            found[network.name], damages[network.name] = _bundle(network, reference, graph, inputs, expected)
        else:
            found[network.name] = decoded_detections(network.name, network.model, imgsz, images)
    classes = len(dataset.class_names)

    def difference(one: str, other: str) -> dict[str, float]:
        return asdict(paired_bootstrap(found[one], found[other], truths, classes, samples=resamples))

    rows: Figures = {}
    with step(f"{resamples} resamples of {len(found)} networks"):
        for name, detections in found.items():
            scores = score(detections, truths, classes)
            rows[name] = {"map50_95": scores.map50_95, "map50": scores.map50}
            rows[name] |= {"damage_percent": damages[name]} if name in damages else {}
            rows[name] |= {"from_checkpoint": difference(name, CHECKPOINT)} if name != CHECKPOINT else {}
        for ours, theirs in _rivals(networks):
            rows[ours]["from_ultralytics"] = difference(ours, theirs)
    return rows


def _bundle(
    network: Network,
    reference: Detector,
    graph: Graph,
    inputs: Sequence[tuple[Any, Any]],
    expected: Sequence[tuple[Any, ...]],
) -> tuple[tuple[Detections, ...], float]:
    """Detections of every image, and the damage in percent."""
    assert network.model is not None
    bundle = Bundle.open(network.model)
    detector = scoring_detector(load_engine(bundle, default_threads()), bundle.manifest)
    meter = AgreementMeter(graph.outputs, graph.reg_max)
    found = []
    with step(f"scoring {network.name}"):
        for (pixels, geometry), truth in zip(inputs, expected, strict=True):
            raw = detector.engine.infer(pixels)
            meter.add(truth, raw)
            found.append(detector.postprocess(raw, geometry))
    detector.close()
    return tuple(found), meter.result().damage_percent


def _rivals(networks: Sequence[Network]) -> list[tuple[str, str]]:
    """Names of each INT8 bundle and of ultralytics' INT8 export for the same runtime."""
    made = [network for network in networks if network.model is not None and network.precision == "int8"]
    return [
        (ours.name, theirs.name)
        for ours in made
        for theirs in made
        if ours.is_ours and theirs.maker == ULTRALYTICS and theirs.engine == ours.engine
    ]


def latency(
    contenders: Sequence[Entrant],
    what: tuple[str, int],
    images: Sequence[str],
    rounds: tuple[int, int],
    log_file: Path,
) -> Figures:
    """Seconds of every contender's inference in turns, a list per round; of all its stages the medians.

    Args:
        contenders: who takes turns.
        what: engine, and side of the input in pixels.
        images: paths.
        rounds: how many, and images of each.
        log_file: where the workers' stderr goes.
    """
    before = machine_state()["load_average"]
    engine, imgsz = what
    cell = measure_cell(
        (imgsz, engine, "fp32 and int8"), contenders, images, *rounds, log_file, sample=_inference_rounds
    )
    return {
        "load_before": before,
        "failures": dict(cell.failures),
        "networks": {
            timing.entrant.name: {
                "rounds_s": timing.rounds_s,
                "stage_medians_s": timing.stage_medians_s,
                "facts": dict(timing.facts),
            }
            for timing in cell.timings
        },
    }


def _inference_rounds(
    entrants: Sequence[Entrant], workers: Mapping[str, WorkerProcess], images: int, rounds: int, per_round: int
) -> list[Timing]:
    """As `bench.studies.runtime_latency` takes turns, but the inference alone counts."""
    samples: dict[str, list[list[list[float]]]] = {entrant.name: [] for entrant in entrants}
    for number in range(rounds):
        indices = round_indices(number, per_round, images)
        for entrant in entrants if number % 2 == 0 else reversed(entrants):
            answer = workers[entrant.name].ask({"do": "stages", "images": indices})
            samples[entrant.name].append(answer["stages_s"])
    return [
        Timing(
            entrant,
            rounds_s=tuple(tuple(stages[1] for stages in one) for one in samples[entrant.name]),
            stages_s=tuple((one[0], one[1], one[2]) for part in samples[entrant.name] for one in part),
            facts=workers[entrant.name].facts,
        )
        for entrant in entrants
    ]


def memory(contender: Entrant, engine: str, imgsz: int, images: Sequence[str], log_file: Path) -> Figures:
    """Peak memory of a fresh process in bytes; or why it could not be measured."""
    found = measure_memory(contender.name, imgsz, engine, contender.request, images, log_file)
    return {"peak_rss_bytes": found.peak_rss_bytes, "failure": found.failure}


def audit(network: Network, threads: int) -> Figures:
    """How many convolutions of a bundle were executed in which precision, asked in a fresh process; or `failure`."""
    assert network.model is not None
    log(f"audit: {network.name}")
    device = open_device(LOCAL, None)
    try:
        record = Site(device).audit(Bundle.open(network.model), threads)
    except (BenchError, DeployError, DeviceError) as error:
        return {"failure": str(error)}
    finally:
        device.close()
    return {name: record[name] for name in ("convolutions", "passed", "verdict", "share")}
