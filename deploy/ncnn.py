"""`python -m deploy.ncnn`: a student as an ncnn bundle."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import OutputSpec
from deploy.command import run_target
from deploy.errors import ExportError
from deploy.ncnn_format import Layer, read_network, rename, write_network
from deploy.target import Compiled, Job, Target, input_spec

MODEL_FILE = "model.param"
WEIGHTS_FILE = "model.bin"
IMAGES = "images"

_SAID_CHARACTERS = 300


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_target(TARGET, argv)


def compile_ncnn(job: Job) -> Compiled:
    """The graph with float32 images (1, 3, height, width) in 0..1 as input: ncnn itself knows no other numbers."""
    layers = _convert(job)
    recipe = None
    if job.precision == "int8":
        from deploy.ncnn_int8 import quantize

        recipe = quantize(layers, job)
    elif job.precision == "fp16":
        _halve(layers)
    _write(layers, job.folder)
    given = input_spec(job, IMAGES, layout="NCHW", dtype="float32")
    return Compiled(MODEL_FILE, given, job.graph.outputs, recipe)


def _convert(job: Job) -> list[Layer]:
    """The network as ncnn's layers, by pnnx."""
    import torch

    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.14 calls tracing deprecated; it is what pnnx reads
        folder = Path(name)
        with torch.inference_mode():
            traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
                job.graph.network, torch.zeros(1, 3, job.imgsz, job.imgsz), check_trace=False
            )
        traced.save(folder / "graph.pt")
        _run_pnnx(folder, job.imgsz)
        param, weights = ((folder / f"graph.ncnn.{suffix}").read_bytes() for suffix in ("param", "bin"))
    layers = read_network(param.decode("ascii", "replace"), weights)
    _check_kinds(layers)
    _spell_infinities(layers)
    _name(layers, job.graph.outputs, job.imgsz)
    return layers


def _run_pnnx(folder: Path, imgsz: int) -> None:
    """Convert `graph.pt` in its own folder, so that no path of this machine is written into a model."""
    from pnnx import EXEC_PATH

    # Weights stay float32 here: what becomes of them is decided below.
    argv = [EXEC_PATH, "graph.pt", f"inputshape=[1,3,{imgsz},{imgsz}]", "fp16=0"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, check=False)
    if done.returncode != 0 or not (folder / "graph.ncnn.bin").exists():
        said = " ".join((done.stdout + done.stderr).decode("utf-8", "replace").split())[-_SAID_CHARACTERS:]
        raise ExportError(f"pnnx cannot convert the student (exit code {done.returncode}): {said}")


def _check_kinds(layers: Sequence[Layer]) -> None:
    """Refuse what pnnx left as it was: it writes such an operation down and says nothing."""
    import ncnn

    unknown = sorted({layer.kind for layer in layers if ncnn.layer_to_index(layer.kind) < 0})
    if unknown:
        raise ExportError(f"ncnn has no {', '.join(unknown)}: deploy this student to onnx, openvino or tflite")


def _spell_infinities(layers: Sequence[Layer]) -> None:
    """Put the greatest float for infinity, as for the border before a pooling, in place: ncnn cannot read the word."""
    spelt = {f"{sign}inf": f"{sign}3.402823466e+38" for sign in ("", "-")}
    for layer in layers:
        layer.params = {number: spelt.get(value, value) for number, value in layer.params.items()}


def _name(layers: Sequence[Layer], outputs: Sequence[OutputSpec], imgsz: int) -> None:
    """Name input and outputs as the graph does, and state the input's shape, in place."""
    names = {"in0": IMAGES} | {f"out{index}": output.name for index, output in enumerate(outputs)}
    missing = set(names) - {name for layer in layers for name in layer.outputs}
    if missing:
        raise ExportError(f"pnnx made no {', '.join(sorted(missing))}: check pnnx's version")
    rename(layers, names)
    (given,) = (layer for layer in layers if layer.kind == "Input")
    given.params = {0: str(imgsz), 1: str(imgsz), 2: "3"}


def _halve(layers: Sequence[Layer]) -> None:
    """Store weights in float16, in place; what is computed in them the engine's option says."""
    for layer in layers:
        layer.weights = [
            replace(blob, values=blob.values.astype(np.float16)) if blob.tagged else blob for blob in layer.weights
        ]


def _write(layers: Sequence[Layer], folder: Path) -> None:
    param, weights = write_network(layers)
    (folder / MODEL_FILE).write_text(param, encoding="ascii")
    (folder / WEIGHTS_FILE).write_bytes(weights)


TARGET = Target(engine="ncnn", packages={"ncnn": "ncnn", "pnnx": "pnnx"}, compile=compile_ncnn)

if __name__ == "__main__":
    sys.exit(main())
