"""What one engine needs on a device: packages by preference, how much room they take, and for which machines."""

from __future__ import annotations

from dataclasses import dataclass

from devices.errors import DeviceError

_COMMON = ("numpy>=1.23", "pillow>=10.1")


@dataclass(frozen=True)
class Recipe:
    """One way to run an engine's bundles.

    Attributes:
        engine_package: the distribution that holds the engine.
        requirements: all that is to be installed, as `pip` takes it.
        unpacked_bytes: about what a venv with it takes on the disk, pip included (measured on x86_64).
    """

    engine_package: str
    requirements: tuple[str, ...]
    unpacked_bytes: int


_ONNX = Recipe("onnxruntime", ("onnxruntime>=1.19", *_COMMON), 190_000_000)
_OPENVINO = Recipe("openvino", ("openvino>=2024.0", *_COMMON), 300_000_000)
_LITERT = Recipe("ai-edge-litert", ("ai-edge-litert>=2.2", *_COMMON), 185_000_000)
_NCNN = Recipe("ncnn", ("ncnn>=1.0.20261020", *_COMMON), 160_000_000)
_MNN = Recipe("mnn", ("mnn>=3.6.1", *_COMMON), 180_000_000)
# Its last release, 2.14, was built against numpy 1.
_TFLITE_RUNTIME = Recipe("tflite-runtime", ("tflite-runtime>=2.14", "numpy>=1.23,<2", "pillow>=10.1"), 130_000_000)

# Ways to run each engine on a 64-bit machine, the best one first: adding an engine is a line here.
_RECIPES = {
    "onnx": (_ONNX,),
    "openvino": (_OPENVINO,),
    "tflite": (_LITERT, _TFLITE_RUNTIME),
    "ncnn": (_NCNN,),
    "mnn": (_MNN,),
}
ENGINES = tuple(_RECIPES)


def recipes(engine: str, machine: str) -> tuple[Recipe, ...]:
    """Ways to run `engine` on a machine, the best one first.

    Args:
        engine: one of `ENGINES`.
        machine: `devices.wheels.Target.machine`.

    Raises:
        DeviceError: there is no such engine, or its makers publish nothing for that machine.
    """
    if engine not in ENGINES:
        raise DeviceError(f"there is no engine {engine!r}: known are {', '.join(ENGINES)}")
    if machine == "armv7l":
        if engine != "tflite":
            raise DeviceError(
                f"no {_RECIPES[engine][0].engine_package} is published for 32-bit ARM: "
                "use --engine tflite, or a 64-bit system (most boards that run this one can)"
            )
        return (_TFLITE_RUNTIME,)
    return _RECIPES[engine]


def engine_packages(engine: str) -> tuple[str, ...]:
    """Distributions any one of which runs an engine's bundles, the one to install first."""
    return tuple(recipe.engine_package for recipe in _RECIPES[engine])
