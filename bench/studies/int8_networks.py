"""The networks of the INT8 study: this project's bundles, ultralytics' exports of the same weights, a peer's file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.studies.runtime_equality import CONF, IOU, MAX_DET
from bench.studies.runtime_latency import OURS, THEIRS, Entrant
from bench.studies.runtime_models import ENGINE_NAMES, PRECISIONS, Workshop
from bench.studies.scoring import model_bytes
from deploy.bundle import Bundle, sha256_file
from deploy.cli import log
from deploy.errors import DeployError

BUNDLE, REPAIRED, ULTRALYTICS, PEER = "bundle", "bundle, repaired", "ultralytics", "peer"
CHECKPOINT = "PyTorch checkpoint"
# Of ultralytics' OpenVINO alone: what is float executed in float32 and not, silently, in bf16.
TRUE_FLOAT = "executed in f32"
_SHORT = 12  # hexadecimal digits


@dataclass(frozen=True)
class Network:
    """One compiled network.

    Attributes:
        engine: which runtime.
        maker: `BUNDLE`, `REPAIRED`, `ULTRALYTICS` or `PEER`.
        precision: "fp32" or "int8".
        model: bundle folder, or what was exported; None where it could not be made.
        failure: why not.
    """

    engine: str
    maker: str
    precision: str
    model: Path | None = None
    failure: str = ""

    @property
    def name(self) -> str:
        """E.g. "LiteRT INT8 bundle, repaired"."""
        return f"{ENGINE_NAMES[self.engine]} {self.precision.upper()} {self.maker}"

    @property
    def is_ours(self) -> bool:
        """Whether it is a bundle of this project."""
        return self.maker in (BUNDLE, REPAIRED)

    @property
    def size_bytes(self) -> int:
        """Of its model files; 0 where it could not be made."""
        if self.model is None:
            return 0
        return Bundle.open(self.model).size_bytes if self.is_ours else model_bytes(self.model)

    @property
    def fingerprint(self) -> str:
        """Of its model files, short: figures are kept under it; "" where it could not be made."""
        if self.model is None:
            return ""
        if self.is_ours:
            return Bundle.open(self.model).sha256[:_SHORT]
        files = [self.model] if self.model.is_file() else sorted(self.model.iterdir())
        return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()[:_SHORT]


@dataclass(frozen=True)
class Sources:
    """What the networks are made from.

    Attributes:
        plain: makes bundles and exports of the student.
        repaired: makes bundles of the repaired student, where there is one.
        peer: an INT8 .tflite with one decoded output, boxes in 0..1.
        imgsz: side of the input in pixels.
    """

    plain: Workshop
    repaired: Workshop | None
    peer: Path | None
    imgsz: int


def make_networks(sources: Sources, engine: str) -> list[Network]:
    """Every network of one runtime, made or opened; one that cannot be made keeps its reason."""
    plain, imgsz = sources.plain, sources.imgsz
    found = [_made(plain.bundle, imgsz, engine, precision, BUNDLE) for precision in PRECISIONS]
    if sources.repaired is not None:
        found.append(_made(sources.repaired.bundle, imgsz, engine, "int8", REPAIRED))
    found += [_made(plain.export, imgsz, engine, precision, ULTRALYTICS) for precision in PRECISIONS]
    if sources.peer is not None and engine == "tflite":
        found.append(Network(engine, PEER, "int8", sources.peer))
    return found


def _made(
    make: Callable[[int, str, str], Bundle | Path], imgsz: int, engine: str, precision: str, maker: str
) -> Network:
    try:
        made = make(imgsz, engine, precision)
    except (BenchError, DeployError) as error:
        log(f"not made: {error}")
        return Network(engine, maker, precision, failure=str(error))
    path = made.path if isinstance(made, Bundle) else made
    return Network(engine, maker, precision, path.resolve())


def entrants(networks: Sequence[Network], imgsz: int, threads: int, bf16: bool) -> Iterator[Entrant]:
    """Who is timed, by the name of the network; those that could not be made are left out."""
    for network in networks:
        if network.model is None:
            continue
        request: dict[str, Any] = {
            "kind": _KINDS[network.maker],
            "model": str(network.model),
            "engine": network.engine,
            "imgsz": imgsz,
            "threads": threads,
            "cpus": threads,
            "conf": CONF,
            "iou": IOU,
            "max_det": MAX_DET,
            "threads_forced": True,
        }
        yield Entrant(network.name, OURS if network.is_ours else THEIRS, request)
        if (network.maker, network.engine, network.precision) == (ULTRALYTICS, "openvino", "fp32") and bf16:
            yield Entrant(f"{network.name}, {TRUE_FLOAT}", THEIRS, {**request, "precision_forced": "f32"})


_KINDS: Mapping[str, str] = {BUNDLE: "bundle", REPAIRED: "bundle", ULTRALYTICS: "ultralytics", PEER: "decoded"}
