"""`python -m deploy.mnn`: a student as an MNN bundle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.command import run_target
from deploy.errors import ExportError
from deploy.mnn_format import describe
from deploy.target import Compiled, Job, Target, input_spec

MODEL_FILE = "model.mnn"

# The native module alone: `MNN.tools`, the package's own wrapper of it, installs a logging client when it is imported
# and reports every conversion to MNN's makers. In a process of its own, as the converter ends the one that it runs in
# where it cannot go on.
CONVERTER = "import sys, _tools; _tools.mnnconvert(sys.argv)"
_IDENTIFIER = "00000000-0000-4000-8000-000000000000"  # else it draws one, and no two builds were the same
_PARAMETERS_VERSION = "3.6.1"
_SAID_CHARACTERS = 300


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_target(TARGET, argv)


def compile_mnn(job: Job) -> Compiled:
    """The graph with float32 images (1, 3, height, width) in 0..1 as input, as MNN takes it from ONNX."""
    from deploy.graph import INPUT_NAME, export_onnx

    model = export_onnx(job.graph, job.imgsz)
    given = input_spec(job, INPUT_NAME, layout="NCHW", dtype="float32")
    path, recipe = job.folder / MODEL_FILE, None
    if job.precision in ("int8", "w8"):
        from deploy.mnn_quantize import executed_float_layers, plan

        chosen = plan(model, job)
        convert(model, path, chosen.entries)
        recipe = chosen.recipe
        if job.precision == "int8":
            path.write_bytes(describe(path.read_bytes(), chosen.apart))
            recipe = replace(recipe, float_layers=executed_float_layers(path, model, job))
    else:
        convert(model, path, halve=job.precision == "fp16")
    return Compiled(MODEL_FILE, given, job.graph.outputs, recipe)


def convert(model: Any, path: Path, layers: Sequence[dict[str, Any]] = (), *, halve: bool = False) -> None:
    """Write an ONNX model as MNN's.

    Args:
        model: an `onnx.ModelProto`.
        path: the file to write.
        layers: what is quantized and how, as the converter's `compressionParamsFile` has it.
        halve: store weights in float16.

    Raises:
        ExportError: the converter cannot do it.
    """
    import onnx

    quantized = [{"type": "QUANTIZE", "quantParams": {"layer": list(layers)}}] if layers else []
    parameters = {"version": _PARAMETERS_VERSION, "mnnUuid": _IDENTIFIER, "algo": quantized}
    with tempfile.TemporaryDirectory() as name:  # the converter writes scratch files where it runs
        folder = Path(name)
        onnx.save(model, folder / "graph.onnx")
        (folder / "parameters.json").write_text(json.dumps(parameters), encoding="ascii")
        argv = [sys.executable, "-I", "-c", CONVERTER, "-f", "ONNX", "--modelFile", "graph.onnx"]
        argv += ["--MNNModel", path.name, "--bizCode", "MNN", "--compressionParamsFile", "parameters.json"]
        argv += ["--fp16"] if halve else []
        done = subprocess.run(argv, cwd=folder, capture_output=True, check=False)
        made = folder / path.name
        if done.returncode != 0 or not made.exists() or not made.stat().st_size:
            raise ExportError(_why_not(done))
        path.write_bytes(made.read_bytes())


def _why_not(done: subprocess.CompletedProcess[bytes]) -> str:
    """The operations that MNN has not, where the converter names them, or the end of what it printed."""
    said = " ".join((done.stdout + done.stderr).decode("utf-8", "replace").split())
    missing = re.search(r"These Op Not Support: (.*?)(?: Converted Failed|$)", said)
    if missing:
        return f"MNN has no {missing[1].replace(' | ', ', ')}: deploy this student to onnx, openvino or tflite"
    return f"MNN cannot convert the student (exit code {done.returncode}): {said[-_SAID_CHARACTERS:]}"


TARGET = Target(
    engine="mnn",
    packages={"onnx": "onnx", "onnxslim": "onnxslim", "onnxruntime": "onnxruntime", "MNN": "mnn"},
    compile=compile_mnn,
    precisions=("fp32", "fp16", "w8", "int8"),
)

if __name__ == "__main__":
    sys.exit(main())
