"""The search for a precision mix: plan, build, measure, correct the plan by what was measured, and choose."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from deploy.build import build_bundle
from deploy.bundle import Bundle
from deploy.errors import DeployError
from deploy.graph import Graph
from deploy.layers import last_layer_names
from deploy.quantization import Quantization
from deploy.search.judge import Judge
from deploy.search.latency import Timing, time_bundles
from deploy.search.plan import Plan
from deploy.steps import quiet, step
from deploy.student import Student
from deploy.target import Target
from deploy.verify import verify_bundle

FLOAT, PLAIN, DEFAULT, LAST = "fp32", "int8", "int8-default", "last-layers"
# Parts of the budget that the first bundles are planned for.
_FIRST_PARTS = (1.0, 0.5)
VERIFY_IMAGES = 64


@dataclass(frozen=True)
class Budget:
    """The slowest that is accepted: seconds, or times the plain INT8 bundle; exactly one of them is given."""

    latency_s: float | None = None
    ratio: float | None = None

    def ratio_for(self, plain_s: float) -> float:
        """The budget as a multiple of the plain INT8 bundle's latency."""
        return self.latency_s / plain_s if self.latency_s is not None else self.ratio or 1.0

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{1e3 * self.latency_s:g}ms" if self.latency_s is not None else f"{self.ratio:g}x"


@dataclass(frozen=True)
class Candidate:
    """One bundle that was built and measured.

    Attributes:
        target: its engine.
        name: "fp32", "int8" (all layers), "int8-default" (as the target does by itself), or a mix.
        float_layers: layers that stay in float, as the manifest has them; empty of "fp32".
        damage_percent: on training images; see `Agreement.damage_percent`.
        latency_s: the plain INT8 bundle's median times `ratio`, so that all are on one scale.
        ratio: see `Timing.ratio`.
        ratio_spread: see `Timing.ratio_spread`.
        size_bytes: of the bundle.
        verified: the manifest's `verified`, where it was held against the validation set.
    """

    target: str
    name: str
    float_layers: tuple[str, ...]
    damage_percent: float
    latency_s: float
    ratio: float
    ratio_spread: float
    size_bytes: int
    verified: dict[str, Any] | None = None

    @property
    def drop_points(self) -> float | None:
        """Loss on the validation set in points; None where it was not verified."""
        return None if self.verified is None else float(self.verified["drop_points"])


class TargetSearch:
    """The search for one target, in a folder of its own."""

    def __init__(
        self, target: Target, student: Student, graph: Graph, judge: Judge, folder: Path, threads: int, **build: Any
    ) -> None:
        """Prepare; `build` are further arguments of `deploy.build.build_bundle`."""
        self._target, self._student, self._graph, self._judge = target, student, graph, judge
        self._folder, self._threads, self._build = folder, threads, build
        self._bundles: dict[str, Bundle] = {}
        self._damage: dict[str, float] = {}

    def run(self, plan: Plan, budget: Budget) -> list[Candidate]:
        """Build and measure everything worth it; fastest first.

        Raises:
            DeployError: a bundle cannot be built or run.
        """
        self._make(FLOAT, None)
        self._make(PLAIN, ())
        self._make(DEFAULT, None)
        self._make(LAST, last_layer_names(self._graph))
        timing = self._time()
        most = budget.ratio_for(timing[PLAIN].p50_s) - 1
        price = max(timing[FLOAT].ratio - 1, 1e-3)  # of having all work done in float
        planned: dict[str, float] = {}
        for part in _FIRST_PARTS:
            self._make_planned(plan, part * most / price, planned)
        if planned:
            timing = self._time()
            # What float costs for the blocks that the plan likes, not for all of them together.
            met = median((timing[name].ratio - 1) / work for name, work in planned.items())
            self._make_planned(plan, most / max(met, 1e-3), planned)
            if any(name not in timing for name in planned):
                timing = self._time()
        plain_s = timing[PLAIN].p50_s
        found = [self._candidate(name, timing[name], plain_s) for name in self._bundles]
        return sorted(found, key=lambda one: one.ratio)

    def verify(self, candidate: Candidate, data: Path) -> Candidate:
        """Hold a candidate's bundle against the student on a validation set, and note it in its manifest."""
        bundle = self._bundles[candidate.name]
        # The search decides itself what loss is too much.
        with quiet():
            verified = verify_bundle(bundle, self._graph, data, VERIFY_IMAGES, 100.0)
        replace(bundle.manifest, verified=verified).write(bundle.path)
        self._bundles[candidate.name] = Bundle.open(bundle.path)
        return replace(candidate, verified=verified)

    def keep(self, candidate: Candidate, destination: Path) -> None:
        """Move a candidate's bundle, and remove all others."""
        self._bundles[candidate.name].path.rename(destination)
        self.discard()

    def discard(self) -> None:
        """Remove all bundles."""
        shutil.rmtree(self._folder)

    def _make_planned(self, plan: Plan, most_work: float, planned: dict[str, float]) -> None:
        blocks = plan.best(most_work)
        names = tuple(block for block in plan.shares if block in blocks)  # in forward order
        name = "+".join(one.removeprefix("model.") for one in names)
        if names and self._make(name, (*names, *last_layer_names(self._graph))):
            planned[name] = plan.work(blocks)

    def _make(self, name: str, float_layers: Sequence[str] | None) -> bool:
        """Build and judge a bundle unless there is an equal one; whether it is new."""
        if name in self._bundles:
            return False
        path = self._folder / f"{len(self._bundles)}"
        with step(f"{self._target.engine}: {name}"):
            bundle = build_bundle(
                self._target,
                self._student,
                path,
                precision="fp32" if name == FLOAT else "int8",
                quantization=Quantization(float_layers=None if float_layers is None else tuple(float_layers)),
                verify=False,
                **self._build,
            )
            if any(_same_model(bundle, other) for other in self._bundles.values()):
                shutil.rmtree(path)
                return False
            self._damage[name] = self._judge.agreement(bundle, self._threads).damage_percent
        self._bundles[name] = bundle
        return True

    def _time(self) -> dict[str, Timing]:
        with step(f"{self._target.engine}: timing {len(self._bundles)} bundles in turns"):
            return time_bundles({name: one.path for name, one in self._bundles.items()}, PLAIN, self._threads)

    def _candidate(self, name: str, timing: Timing, plain_s: float) -> Candidate:
        bundle = self._bundles[name]
        recipe = bundle.manifest.quantization or {}
        return Candidate(
            target=self._target.engine,
            name=name,
            float_layers=tuple(recipe.get("float_layers", ())),
            damage_percent=self._damage[name],
            latency_s=plain_s * timing.ratio,
            ratio=timing.ratio,
            ratio_spread=timing.ratio_spread,
            size_bytes=bundle.size_bytes,
        )


def within(candidates: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """The quantized candidates of one target that are fast enough, least damage first.

    Raises:
        DeployError: the plain INT8 bundle is not among them to compare with.
    """
    plain = [one for one in candidates if one.name == PLAIN]
    if not plain:
        raise DeployError("no plain INT8 bundle was measured: nothing to compare with")
    most = budget.ratio_for(plain[0].latency_s)
    fast = [one for one in candidates if one.ratio <= most or (one.name == PLAIN and most >= 1)]
    return sorted(fast, key=lambda one: (one.damage_percent, one.ratio))


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in latency and damage at once, fastest first."""
    front: list[Candidate] = []
    for one in sorted(candidates, key=lambda one: (one.latency_s, one.damage_percent)):
        if not front or one.damage_percent < front[-1].damage_percent:
            front.append(one)
    return front


def _same_model(one: Bundle, other: Bundle) -> bool:
    return one.manifest.files == other.manifest.files  # their hashes
