"""Reading ultralytics checkpoints, and running their layers up to the head."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploy.errors import StudentError


@dataclass(frozen=True)
class Checkpoint:
    """A network as a training left it.

    Attributes:
        model: the ultralytics model in float32, evaluation mode: the EMA where there is one.
        class_names: index is the class id.
        trained_imgsz: side in pixels of the training images, where the checkpoint says so.
    """

    model: Any
    class_names: tuple[str, ...]
    trained_imgsz: int | None

    @property
    def head(self) -> Any:
        """The last layer."""
        return self.model.model[-1]


class Body(nn.Module):
    """All layers of an ultralytics model but its head."""

    def __init__(self, layers: Sequence[Any], saved: Sequence[int]) -> None:
        """Take over the layers.

        Args:
            layers: each with `f`, the index or indices of the layers it reads (-1 is the one before); the last is the
                head.
            saved: indices of the layers whose output is read later.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers[:-1])
        self._sources: list[int | list[int]] = [layer.f for layer in layers]
        self._saved = frozenset(saved)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(1, 3, H, W) float in 0..1 to the feature maps that the head reads."""
        kept: dict[int, torch.Tensor] = {}
        x: Any = images
        for index, layer in enumerate(self.layers):
            source = self._sources[index]
            if isinstance(source, list):
                x = [x if one == -1 else kept[one] for one in source]
            elif source != -1:
                x = kept[source]
            x = layer(x)
            if index in self._saved:
                kept[index] = x
        read_by_head = self._sources[-1]
        sources = read_by_head if isinstance(read_by_head, list) else [read_by_head]
        return [x if one == -1 else kept[one] for one in sources]


def read_checkpoint(path: Path) -> Checkpoint:
    """Load an ultralytics checkpoint, whatever its head.

    Args:
        path: a `.pt`: the weights of a training, stored in half or single precision.

    Raises:
        StudentError: no such file, not such a checkpoint, not for RGB images, or weights that are not finite.
    """
    fields = _fields(path)
    model = fields.get("ema") or fields.get("model")
    if not isinstance(model, nn.Module) or not isinstance(getattr(model, "model", None), nn.Sequential):
        raise StudentError(
            f"{path} holds {type(model).__name__} where an ultralytics model is expected (keys: "
            f"{', '.join(map(str, list(fields)[:5])) or 'none'}): give the best.pt or student.pt of a training"
        )
    loaded: Any = model.float().eval()
    _check_network(loaded, path)
    imgsz = (fields.get("train_args") or {}).get("imgsz")
    names = loaded.names
    return Checkpoint(
        model=loaded,
        class_names=tuple(str(name) for name in (names.values() if isinstance(names, dict) else names)),
        trained_imgsz=imgsz if isinstance(imgsz, int) else None,
    )


def check_class_names(class_names: Sequence[str], class_count: int, path: Path) -> None:
    """Refuse a network that has not a name for each class.

    Raises:
        StudentError: another number of names than of classes.
    """
    if len(class_names) != class_count:
        raise StudentError(f"{path} has {len(class_names)} class names for {class_count} classes: train it again")


def check_finite(network: nn.Module, path: Path) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        StudentError: there are some; the first tensor is named.
    """
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StudentError(f"{path} has weights that are not finite ({name}): its training diverged")


def first_line(error: BaseException) -> str:
    """The first line of a library's message, without its decoration and advice."""
    lines = str(error).splitlines() or [""]
    return lines[0].replace("ERROR ❌️", "").strip() or type(error).__name__


def _fields(checkpoint: Path) -> dict[str, Any]:
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
    except (
        TypeError,
        RuntimeError,
        ImportError,
        AttributeError,
        LookupError,
        ValueError,
        EOFError,
        OSError,
        struct.error,
    ) as error:
        # torch reports a damaged file as any of these, by where the damage lies.
        raise StudentError(f"{checkpoint} cannot be read ({first_line(error)}): copy or train it again") from error
    except pickle.UnpicklingError as error:
        raise StudentError(f"{checkpoint} is damaged ({first_line(error)}): copy or train it again") from error
    return dict(fields)


def _check_network(model: Any, path: Path) -> None:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels != 3:
        met = "no convolution" if first is None else f"images of {first.in_channels} channels"
        raise StudentError(f"{path} takes {met}, expected 3 (RGB): train the student on colour images")
    check_finite(model, path)
