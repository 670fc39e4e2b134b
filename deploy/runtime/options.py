"""Engine options: what may be set, to which values, and what is set when nobody says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.errors import EngineError

Value = str | int | bool
Options = Mapping[str, Value]


@dataclass(frozen=True)
class Option:
    """One setting of an engine.

    Attributes:
        default: what is set when nobody says otherwise.
        values: the values it may take; empty for any whole number of at least `least`.
        least: the smallest whole number allowed.
        help: one line on what it does.
    """

    default: Value
    values: tuple[Value, ...] = ()
    least: int = 0
    help: str = ""

    def allows(self, value: object) -> bool:
        """Whether `value` may be set. True and 1 are different values."""
        if self.values:
            return any(type(value) is type(known) and value == known for known in self.values)
        return isinstance(value, int) and not isinstance(value, bool) and value >= self.least

    @property
    def expected(self) -> str:
        """What may be set, in words."""
        return "one of " + ", ".join(map(repr, self.values)) if self.values else f"a whole number from {self.least}"


_BOOL = (False, True)

OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "onnx": {
        "graph_optimization": Option(
            "all", ("disable", "basic", "extended", "all"), help="how far ONNX Runtime rewrites the graph"
        ),
        "memory_arena": Option(True, _BOOL, help="keep the memory of one inference for the next"),
        "memory_pattern": Option(False, _BOOL, help="lay out all memory of an inference in one block of its own"),
        "allow_spinning": Option(True, _BOOL, help="threads wait for work in a busy loop: faster, and warmer"),
        "model_cache": Option(True, _BOOL, help="keep the optimised graph on disk for the next load"),
    },
    "openvino": {
        "hint": Option("latency", ("latency", "throughput"), help="what OpenVINO tunes itself for"),
        "streams": Option(1, least=1, help="inferences at once; the detector asks for one at a time"),
        "inference_precision": Option(
            "bundle",
            ("bundle", "f32", "bf16", "f16"),
            help="what layers that are not quantized are computed in; bundle: f16 or bf16 for such a bundle, else f32",
        ),
        "amx": Option(
            "auto",
            ("auto", "on", "off"),
            help="matrix instructions of x86, where the process has not used OpenVINO before; auto: off for int8",
        ),
        "model_cache": Option(True, _BOOL, help="keep the compiled model on disk for the next load"),
    },
    "tflite": {
        "xnnpack": Option(True, _BOOL, help="run by XNNPACK, not by the library's reference kernels"),
    },
    "ncnn": {
        "inference_precision": Option(
            "bundle",
            ("bundle", "f32", "bf16", "f16"),
            help="what layers that are not quantized are computed in; bundle: f16 for an fp16 bundle, else f32",
        ),
        "winograd": Option(True, _BOOL, help="3x3 convolutions by Winograd's algorithm: fewer products, more memory"),
        "sgemm": Option(True, _BOOL, help="other convolutions as matrix products"),
        "packing": Option(True, _BOOL, help="channels side by side in memory, as vector instructions want them"),
        "light_mode": Option(True, _BOOL, help="free each tensor once it is read: less memory"),
        "block_time_ms": Option(20, help="how long threads wait for work in a busy loop: faster, and warmer"),
    },
    "mnn": {
        "inference_precision": Option(
            "bundle",
            ("bundle", "f32", "f16"),
            help="what layers that are not quantized are computed in; bundle: f16 for an fp16 bundle, else f32",
        ),
        "winograd_level": Option(
            1, (0, 1, 2, 3), help="size of Winograd's tiles: fewer products, more memory; 3 rounds 40 times coarser"
        ),
    },
}


def chosen_options(engine: str, manifest: Options, given: Options) -> dict[str, Value]:
    """Every option of an engine with the value to set.

    Args:
        engine: one of `deploy.bundle.ENGINES`.
        manifest: the bundle's `engine_options`.
        given: what the caller asks for, before all else.

    Raises:
        EngineError: an option the engine does not have, or a value it cannot take.
    """
    known = OPTIONS[engine]
    chosen = {name: option.default for name, option in known.items()}
    for source, options in (("the manifest", manifest), ("the caller", given)):
        for name, value in options.items():
            if name not in known:
                raise EngineError(f"{source} sets option {name!r}, {engine} has {', '.join(known)}")
            if not known[name].allows(value):
                raise EngineError(f"{source} sets option {name!r} to {value!r}, expected {known[name].expected}")
            chosen[name] = value
    return chosen
