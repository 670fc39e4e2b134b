"""Which layers to keep in float for a given price: a model of what each choice wins and costs, made without building.

Errors of quantization that do not know of each other add in their squares. So the squared damage of the whole network
is shared out over what is quantized: weights belong to their block, and an activation to all blocks that make or read
it, because it stays float only if all of them do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.layers import block_of
from deploy.sensitivity import Probe
from deploy.sensitivity.partial import Choice

# Neighbours that win together what neither wins alone are tried together, but not more of them.
_MOST_TOGETHER = 3


@dataclass(frozen=True)
class Plan:
    """What keeping blocks in float wins and costs.

    Attributes:
        shares: block to its part of the network's work, 0..1: the mean of its part of the multiplications and of the
            values that are written.
        energies: blocks to the squared damage, in percent², that is gone once all of them are float.
    """

    shares: Mapping[str, float]
    energies: Mapping[frozenset[str], float]

    def relief(self, kept: frozenset[str]) -> float:
        """Squared damage, percent², that is gone with these blocks in float."""
        return sum(energy for blocks, energy in self.energies.items() if blocks <= kept)

    def work(self, kept: frozenset[str]) -> float:
        """The part of the network's work that is then done in float, 0..1."""
        return sum(self.shares[block] for block in kept)

    def best(self, most_work: float) -> frozenset[str]:
        """The blocks to keep in float where they may be at most `most_work` of the network's work.

        Greedy: what wins most for its work comes next, until nothing fits.
        """
        moves = {frozenset({block}) for block in self.shares}
        moves |= {blocks for blocks in self.energies if len(blocks) <= _MOST_TOGETHER}
        kept = frozenset[str]()
        while True:
            best, best_rate = kept, 0.0
            for move in sorted(moves, key=sorted):
                added = move - kept
                work = self.work(added)
                if not added or self.work(kept) + work > most_work + 1e-12:
                    continue
                rate = (self.relief(kept | move) - self.relief(kept)) / max(work, 1e-9)
                if rate > best_rate:
                    best, best_rate = kept | move, rate
            if best == kept:
                return kept
            kept = best


def make_plan(probe: Probe) -> Plan:
    """Measure what every block, and every neighbourhood of blocks, has of the damage."""
    block = [block_of(layer) for layer in probe.layers]
    macs, values = probe.shares()
    shares: dict[str, float] = {}
    weights: dict[frozenset[str], set[int]] = {}
    sites: dict[frozenset[str], set[int]] = {}
    for number, name in enumerate(block):
        shares[name] = shares.get(name, 0.0) + (macs[number] + values[number]) / 2
        weights.setdefault(frozenset({name}), set()).add(number)
    for site, layers in enumerate(probe.quantizer.sites):
        sites.setdefault(frozenset(block[number] for number in layers), set()).add(site)
    parts = list(dict.fromkeys([*weights, *sites]))
    choices = [Choice(frozenset(weights.get(part, ())), frozenset(sites.get(part, ()))) for part in parts]
    damages = probe.damages(choices)
    return Plan(shares, {part: one.damage_percent**2 for part, one in zip(parts, damages, strict=True)})
