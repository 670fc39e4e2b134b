"""Whether what was executed is what the bundle claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.bundle import Bundle, Manifest
from deploy.runtime.audit.operators import CONVERSION, CONVOLUTION, EXECUTED_AS, LAYOUT, Executed, Operator

# What a bundle's precision promises of its convolutions and products. 16-bit weights and "w8" promise a smaller file;
# what they are computed in is the processor's matter.
PROMISED: Mapping[str, tuple[str, ...]] = {
    "int8": ("INT8",),
    "dynamic": ("INT8 dynamic", "INT8"),
    "w8a16": ("INT16",),
    "bf16": ("BF16",),
    "fp32": ("FP32",),
    "fp16": ("FP16", "FP32"),
    "w8": ("FP32", "FP16", "BF16", "INT8 dynamic"),
}
# Part of the multiplications, those that the recipe keeps in float left out, that must be as promised.
LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Verdict:
    """Whether a bundle ran as it claims.

    Attributes:
        passed: whether at least `LEAST_SHARE` of the multiplications did.
        text: one line that says so, with the counts.
        share: part of all multiplications that ran as promised and accelerated, 0..1.
    """

    passed: bool
    text: str
    share: float


def judge(manifest: Manifest, operators: Sequence[Operator]) -> Verdict:
    """Hold what was executed against the manifest's precision.

    Operators that the recipe keeps in float are known by their number alone, as runtimes rename layers: that many of
    those not quantized are excused, the smallest ones.
    """
    judged = [one for one in operators if one.counts]
    if not judged:
        return Verdict(False, "no convolution was executed: nothing to judge", 0.0)
    promised = PROMISED[manifest.precision]
    kept = [one for one in judged if one.precision in promised and (one.accelerated or manifest.precision != "int8")]
    broken = sorted((one for one in judged if one not in kept), key=_work)
    excused = broken[: _kept_in_float(manifest, judged)]
    whole, done = sum(map(_work, judged)), sum(map(_work, kept))
    required = whole - sum(map(_work, excused))
    share = done / whole if whole else 0.0
    passed = bool(required) and done >= LEAST_SHARE * required
    return Verdict(passed, _sentence(manifest.precision, judged, kept, len(excused), passed, share), share)


def audit_record(bundle: Bundle, threads: int, found: Executed, every_operator: bool = False) -> dict[str, Any]:
    """What an audit says, for JSON.

    Args:
        bundle: what was executed.
        threads: of the engine.
        found: what the engine says.
        every_operator: also a row per operator, not only per kind of operator.

    Returns:
        `precision` (asked), `library`, `version`, `threads`; `passed`, `verdict`, `share` as in `Verdict`;
        `convolutions`: how many convolutions and products by what they were executed as, `conversions` and `reorders`
        counted; `kinds`: of each kind of operator the count, the counts by precision, the multiplications, and the
        seconds of one inference (null where the engine does not tell); `notes`.
    """
    operators = found.operators
    verdict = judge(bundle.manifest, operators)
    record = {
        "bundle": bundle.path.resolve().name,
        "engine": bundle.manifest.engine,
        "precision": bundle.manifest.precision,
        "library": found.library,
        "version": found.version,
        "threads": threads,
        "passed": verdict.passed,
        "verdict": verdict.text,
        "share": verdict.share,
        "convolutions": _by_precision([one for one in operators if one.counts]),
        "conversions": sum(one.role == CONVERSION for one in operators),
        "reorders": sum(one.role == LAYOUT for one in operators),
        "kinds": [_kind(name, operators) for name in dict.fromkeys(one.kind for one in operators)],
        "notes": list(found.notes),
    }
    if every_operator:
        names = ("name", "kind", "role", "precision", "kernel", "macs", "seconds", "accelerated")
        record["operators"] = [{name: getattr(one, name) for name in names} for one in operators]
    return record


def _kind(kind: str, operators: Sequence[Operator]) -> dict[str, Any]:
    alike = [one for one in operators if one.kind == kind]
    times = [one.seconds for one in alike if one.seconds is not None]
    return {
        "kind": kind,
        "role": alike[0].role,
        "count": len(alike),
        "precisions": _by_precision(alike),
        "accelerated": sum(one.accelerated for one in alike),
        "macs": sum(one.macs for one in alike),
        "seconds": sum(times) if times else None,
    }


def _by_precision(operators: Sequence[Operator]) -> dict[str, int]:
    counts = Counter(one.precision for one in operators)
    return {name: counts[name] for name in EXECUTED_AS if counts[name]}


def _work(one: Operator) -> int:
    return max(one.macs, 1)  # each counts as one where no shape is known


def _kept_in_float(manifest: Manifest, judged: Sequence[Operator]) -> int:
    layers = (manifest.quantization or {}).get("float_layers") or ()
    return min(len(layers), len(judged)) if manifest.precision in ("int8", "dynamic", "w8a16") else 0


def _sentence(
    precision: str, judged: Sequence[Operator], kept: Sequence[Operator], excused: int, passed: bool, share: float
) -> str:
    """The verdict in one line."""
    what = "convolutions" if all(one.role == CONVOLUTION for one in judged) else "convolutions and products"
    as_promised = [one for one in judged if one.precision in PROMISED[precision]]
    shown = _by_precision(as_promised) or {PROMISED[precision][0]: 0}
    counts = " and ".join(f"{name}: {count}" for name, count in shown.items())
    text = f"{counts} of {len(judged)} {what}"
    slow = len(as_promised) - len(kept)
    text += f", {slow} of them by kernels that are not accelerated" if slow else ""
    text += f", {100 * share:.1f} % of the multiplications"
    wrong = _by_precision([one for one in judged if one.precision not in PROMISED[precision]])
    if wrong:
        text += "; " + " and ".join(f"{count} in {name}" for name, count in wrong.items())
        text += f", {excused} of them by recipe" if excused and not slow else ""
    return f"executed as {text}" if passed else f"FALLS BACK, {precision} is claimed; executed as {text}"
