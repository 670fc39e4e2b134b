"""The one exported graph that every target compiles: a YOLOv8 network cut before the decode.

The head's last convolutions are the outputs: one tensor per pyramid level for the boxes (DFL logits, Generalized Focal
Loss, Li et al. 2020, section 3.2) and one for the classes (logits). Joined into one tensor, boxes in 0..640 and
scores in 0..1 would have to share one int8 scale, which rounds every score to 0.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy.bundle import OutputSpec
from deploy.errors import ExportError, StudentError

STRIDES = (8, 16, 32)
INPUT_NAME = "images"
OPSET = 17

# A class logit below this is a score below 0.0003: every evaluation cuts at 0.001 or above.
CLASS_LOGIT_FLOOR = -8.0


@dataclass(frozen=True)
class Graph:
    """A loaded student, ready to be compiled.

    Attributes:
        network: (1, 3, height, width) float32 RGB in 0..1 to the raw head tensors, in the order of `outputs`.
        outputs: what each raw tensor is; its layout is that of `network`, NCHW.
        class_names: index is the class id.
        reg_max: DFL bins per box side.
        parameters: weights and biases after fusing.
        trained_imgsz: side in pixels of the training images, where the checkpoint says so.
    """

    network: RawHeads
    outputs: tuple[OutputSpec, ...]
    class_names: tuple[str, ...]
    reg_max: int
    parameters: int
    trained_imgsz: int | None


class RawHeads(nn.Module):
    """A YOLOv8 network whose detection head returns its raw tensors."""

    def __init__(self, layers: Sequence[Any], saved: Sequence[int]) -> None:
        """Take over the layers of an ultralytics `DetectionModel`, the last of which is a `Detect`.

        Args:
            layers: each with `f`, the index or indices of the layers it reads (-1 is the one before).
            saved: indices of the layers whose output is read later.
        """
        super().__init__()
        head: Any = layers[-1]
        self.body = nn.ModuleList(layers[:-1])
        self.box_branches, self.class_branches = head.cv2, head.cv3
        self._sources: list[int | list[int]] = [layer.f for layer in layers]
        self._saved = frozenset(saved)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, 3, H, W) float in 0..1 to box logits (1, 4 * reg_max, h, w) and class logits (1, classes, h, w)."""
        kept: dict[int, torch.Tensor] = {}
        x: Any = images
        for index, layer in enumerate(self.body):
            source = self._sources[index]
            if isinstance(source, list):
                x = [x if one == -1 else kept[one] for one in source]
            elif source != -1:
                x = kept[source]
            x = layer(x)
            if index in self._saved:
                kept[index] = x
        head_sources = self._sources[-1]
        assert isinstance(head_sources, list)
        levels = [kept[one] for one in head_sources]
        boxes = tuple(branch(level) for branch, level in zip(self.box_branches, levels, strict=True))
        classes = tuple(branch(level) for branch, level in zip(self.class_branches, levels, strict=True))
        return boxes + classes


class ChannelsLast(nn.Module):
    """The same network with its input and outputs in NHWC, the layout of TFLite."""

    def __init__(self, network: RawHeads) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, H, W, 3) float in 0..1 to raw tensors (1, h, w, channels)."""
        return tuple(output.permute(0, 2, 3, 1) for output in self.network(images.permute(0, 3, 1, 2)))


def load_graph(checkpoint: Path) -> Graph:
    """Load an ultralytics checkpoint, fuse its BatchNorms and cut it before the decode.

    Args:
        checkpoint: a `.pt` of a YOLOv8-style detector: the weights of a training (the EMA, where there is one),
            stored in half or single precision.

    Raises:
        StudentError: no such file, not a checkpoint, or not a detector of this kind.
    """
    fields = _read_checkpoint(checkpoint)
    model = fields.get("ema") or fields.get("model")
    if not isinstance(model, nn.Module) or not isinstance(getattr(model, "model", None), nn.Sequential):
        raise StudentError(
            f"{checkpoint} holds {type(model).__name__} where an ultralytics model is expected (keys: "
            f"{', '.join(map(str, list(fields)[:5])) or 'none'}): give the best.pt or student.pt of a training"
        )
    detector: Any = model.float().eval()
    head = detector.model[-1]
    _check_head(head, checkpoint)
    _check_network(detector, head, checkpoint)
    names = detector.names
    class_names = tuple(str(name) for name in (names.values() if isinstance(names, dict) else names))
    if len(class_names) != head.nc:
        raise StudentError(f"{checkpoint} has {len(class_names)} class names for {head.nc} classes: train it again")
    detector.fuse(verbose=False)
    network = RawHeads(list(detector.model), detector.save).eval().requires_grad_(False)
    imgsz = (fields.get("train_args") or {}).get("imgsz")
    return Graph(
        network=network,
        outputs=_outputs(head.reg_max, head.nc),
        class_names=class_names,
        reg_max=int(head.reg_max),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        trained_imgsz=imgsz if isinstance(imgsz, int) else None,
    )


def check_imgsz(imgsz: int) -> int:
    """`imgsz` in pixels, if the network can take it.

    Raises:
        ExportError: not a positive multiple of the coarsest stride.
    """
    coarsest = STRIDES[-1]
    if imgsz < coarsest or imgsz % coarsest:
        nearest = max(coarsest, round(imgsz / coarsest) * coarsest)
        raise ExportError(f"image size {imgsz} is not a multiple of {coarsest}: give --imgsz {nearest}")
    return imgsz


def export_onnx(graph: Graph, imgsz: int) -> Any:
    """The graph as an `onnx.ModelProto`: input `images` (1, 3, imgsz, imgsz) float32 in 0..1, outputs by name.

    The TorchScript exporter at opset 17 is used: every ONNX Runtime and OpenVINO of the last years reads it.
    """
    import onnx
    import onnxslim

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        file = Path(folder) / "graph.onnx"
        # torch 2.14 warns that this exporter is the older one.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.network,
            (torch.zeros(1, 3, imgsz, imgsz),),
            file,
            input_names=[INPUT_NAME],
            output_names=[output.name for output in graph.outputs],
            opset_version=OPSET,
            dynamo=False,
        )
        exported = onnx.load(file)
    # Without this the channel splits of C2f stay as Shape / Gather / Div chains, which the quantizers trip over.
    return onnxslim.slim(exported)


def _read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    if checkpoint.suffix != ".pt":
        raise StudentError(f"{checkpoint} ends in {checkpoint.suffix or 'no suffix'!r}, expected a .pt checkpoint")
    if not checkpoint.is_file():
        raise StudentError(f"no checkpoint {checkpoint}: give --student a .pt file, or a folder made by distill")
    # Deploying installs nothing by itself; ultralytics would, for a checkpoint that names a missing module.
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    from ultralytics.nn.tasks import torch_safe_load

    try:
        # Only the known layer classes are rebuilt: opening a checkpoint from elsewhere runs no code of its own.
        fields, _ = torch_safe_load(str(checkpoint), safe_only=True)
    except (TypeError, RuntimeError, ImportError, AttributeError, KeyError, ValueError, EOFError, OSError) as error:
        # torch reports a damaged file as any of these, by where the damage lies.
        raise StudentError(f"{checkpoint} cannot be read ({_reason(error)}): copy or train it again") from error
    except pickle.UnpicklingError as error:
        raise StudentError(f"{checkpoint} is damaged ({_reason(error)}): copy or train it again") from error
    return dict(fields)


def _reason(error: BaseException) -> str:
    """The first line of a library's message, without its decoration and advice."""
    lines = str(error).splitlines() or [""]
    return lines[0].replace("ERROR ❌️", "").strip() or type(error).__name__


def _check_head(head: Any, checkpoint: Path) -> None:
    kind = type(head).__name__
    if kind != "Detect":
        raise StudentError(f"{checkpoint} has a {kind} head, expected Detect: train a YOLOv8 detection model")
    if getattr(head, "one2one_cv2", None) is not None:
        raise StudentError(f"{checkpoint} has an end-to-end head (YOLOv10, YOLO26), expected YOLOv8's: use yolov8n")
    if head.reg_max < 2:
        raise StudentError(f"{checkpoint} has reg_max {head.reg_max}, expected YOLOv8's 16 DFL bins: use yolov8n")
    strides = tuple(int(stride) for stride in head.stride)
    if strides != STRIDES:
        raise StudentError(f"{checkpoint} has strides {strides}, expected {STRIDES}: use a YOLOv8 without P2 or P6")


def _check_network(detector: Any, head: Any, checkpoint: Path) -> None:
    first = next(module for module in detector.modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != 3:
        raise StudentError(f"{checkpoint} takes images of {first.in_channels} channels, expected 3 (RGB)")
    for name, tensor in detector.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StudentError(f"{checkpoint} has weights that are not finite ({name}): its training diverged")


def _outputs(reg_max: int, class_count: int) -> tuple[OutputSpec, ...]:
    levels = [(stride.bit_length() - 1, stride) for stride in STRIDES]  # level p has stride 2 ** p
    boxes = [OutputSpec(f"box_p{level}", "box", stride, 4 * reg_max, "NCHW") for level, stride in levels]
    classes = [OutputSpec(f"class_p{level}", "class", stride, class_count, "NCHW") for level, stride in levels]
    return (*boxes, *classes)
