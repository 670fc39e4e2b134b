"""The one exported graph that every target compiles: a network cut before its decode or softmax."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy.bundle import InputSpec, OutputSpec
from deploy.checkpoint import first_line, read_checkpoint
from deploy.errors import ExportError, StudentError
from deploy.graph_classify import exported_logits, logits_outputs, recorded_input, ultralytics_logits
from deploy.graph_detect import HEADS, STRIDES, raw_heads
from deploy.student import RECORD_NAME, REPAIR_RECORD

INPUT_NAME = "images"
OPSET = 17

# A class logit below this is a score below 0.0003: every evaluation cuts at 0.001 or above.
CLASS_LOGIT_FLOOR = -8.0


@dataclass(frozen=True)
class Graph:
    """A loaded student, ready to be compiled.

    Attributes:
        network: (1, 3, H, W) float RGB in 0..1 to a tuple of raw tensors.
        outputs: what each of them is; layouts as torch gives them.
        class_names: index is the class id.
        reg_max: DFL bins per box side; 0 for a classifier.
        parameters: weights and biases after fusing.
        trained_imgsz: side in pixels of the training images, where the student says so.
        task: "detect", "segment" or "classify".
        fit: how images are brought to the input's size; see `deploy.bundle.InputSpec`.
        resize: short side in pixels before a "crop" to `trained_imgsz`; None where it is the input's side.
        fixed_imgsz: whether the network takes no other size than `trained_imgsz`.
        ranges: least and greatest value of each activation that its weights were trained for in INT8, in the order of
            `deploy.repair.fake_quant.Simulation`; None of a student that was not.
    """

    network: nn.Module
    outputs: tuple[OutputSpec, ...]
    class_names: tuple[str, ...]
    reg_max: int
    parameters: int
    trained_imgsz: int | None
    task: str = "detect"
    fit: str = "letterbox"
    resize: int | None = None
    fixed_imgsz: bool = False
    ranges: tuple[tuple[float, float], ...] | None = None

    def input_spec(self, name: str, imgsz: int, **kind: Any) -> InputSpec:
        """The image input at `imgsz` pixels; `kind` gives layout and dtype of the compiled model's."""
        resize = (self.resize or imgsz) if self.fit == "crop" else None
        return InputSpec(name=name, height=imgsz, width=imgsz, fit=self.fit, resize=resize, **kind)


class ChannelsLast(nn.Module):
    """The same network with its input and outputs in NHWC, the layout of TFLite."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, H, W, 3) float in 0..1 to raw tensors (1, h, w, channels), or (1, channels) as they are."""
        outputs = self.network(images.permute(0, 3, 1, 2))
        return tuple(output.permute(0, 2, 3, 1) if output.ndim == 4 else output for output in outputs)


def load_graph(checkpoint: Path, record: Mapping[str, Any] | None = None) -> Graph:
    """Load a student, fuse its BatchNorms and cut it before the decode or the softmax.

    Args:
        checkpoint: a `.pt` of a YOLOv8 detector, segmenter or classifier (the EMA, where there is one), or the `.pt2`
            of a distilled classifier.
        record: content of the student.json beside it, where there is one: the input of a `.pt2`, the ranges of a
            repaired student.

    Raises:
        StudentError: no such file, not a student, or not one of these kinds.
    """
    if checkpoint.suffix == ".pt2":
        return _exported_classifier(checkpoint, record or {})
    read = read_checkpoint(checkpoint)
    kind = type(read.head).__name__
    if kind not in (*HEADS, "Classify"):
        raise StudentError(
            f"{checkpoint} has a {kind} head, expected {', '.join(HEADS)} or Classify: train a YOLOv8 detection, "
            "segmentation or classification model"
        )
    network: nn.Module
    if kind == "Classify":
        network, outputs = ultralytics_logits(read, checkpoint)
    else:
        network, outputs = raw_heads(read, checkpoint)
    network = network.eval().requires_grad_(False)
    return Graph(
        network=network,
        outputs=outputs,
        class_names=read.class_names,
        reg_max=0 if kind == "Classify" else int(read.head.reg_max),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        trained_imgsz=read.trained_imgsz,
        task=HEADS.get(kind, "classify"),
        fit="crop" if kind == "Classify" else "letterbox",
        ranges=_trained_ranges(checkpoint, record or {}),
    )


def _trained_ranges(checkpoint: Path, record: Mapping[str, Any]) -> tuple[tuple[float, float], ...] | None:
    ranges = (record.get(REPAIR_RECORD) or {}).get("ranges")
    try:
        return None if ranges is None else tuple((float(low), float(high)) for low, high in ranges)
    except (TypeError, ValueError) as error:
        raise StudentError(
            f"the ranges in {RECORD_NAME} of {checkpoint} are no pairs of numbers: repair it again"
        ) from error


def check_imgsz(imgsz: int, graph: Graph | None = None) -> int:
    """`imgsz` in pixels, if the network can take it; without `graph`, a detector.

    Raises:
        ExportError: not a positive multiple of the coarsest stride, or not the one size that the network takes.
    """
    if graph is not None and graph.fixed_imgsz:
        if imgsz != graph.trained_imgsz:
            raise ExportError(
                f"image size {imgsz} is not the {graph.trained_imgsz} px that the student was made for: "
                "leave --imgsz out, or distil a student of that size"
            )
        return imgsz
    coarsest = STRIDES[-1]
    if imgsz < coarsest or imgsz % coarsest:
        nearest = max(coarsest, round(imgsz / coarsest) * coarsest)
        raise ExportError(f"image size {imgsz} is not a multiple of {coarsest}: give --imgsz {nearest}")
    return imgsz


def export_onnx(graph: Graph, imgsz: int) -> Any:
    """The graph as an `onnx.ModelProto`: input `images` (1, 3, imgsz, imgsz) float32 in 0..1, outputs by name.

    The TorchScript exporter at opset 17 is used: every ONNX Runtime and OpenVINO of the last years reads it.

    Raises:
        ExportError: the network has an operation that ONNX has not.
    """
    import onnx
    import onnxslim

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        file = Path(folder) / "graph.onnx"
        # torch 2.14 warns that this exporter is the older one.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                graph.network,
                (torch.zeros(1, 3, imgsz, imgsz),),
                file,
                input_names=[INPUT_NAME],
                output_names=[output.name for output in graph.outputs],
                opset_version=OPSET,
                dynamo=False,
                # An exported program cannot be put into evaluation mode, in which the others are already.
                training=torch.onnx.TrainingMode.PRESERVE,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(
                f"the student has an operation without a form in ONNX opset {OPSET} ({first_line(error)}): "
                "replace it in the network, or use a YOLOv8"
            ) from error
        exported = onnx.load(file)
    # Without this the channel splits of C2f stay as Shape / Gather / Div chains, which the quantizers trip over.
    return onnxslim.slim(exported)


def _exported_classifier(program: Path, record: Mapping[str, Any]) -> Graph:
    if record.get("task") != "classify":
        raise StudentError(
            f"{program} is an exported program without the student.json of a classifier beside it, which says what its "
            "input and classes are: give the whole folder that python -m distill.classify wrote"
        )
    given, class_names = recorded_input(record, program)
    network, parameters = exported_logits(program, class_names, given.imgsz)
    return Graph(
        network=network,
        outputs=logits_outputs(len(class_names)),
        class_names=class_names,
        reg_max=0,
        parameters=parameters,
        trained_imgsz=given.imgsz,
        task="classify",
        fit=given.fit,
        resize=given.resize,
        fixed_imgsz=True,
    )
