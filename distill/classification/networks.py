"""Networks by name: the course's, torchvision's, timm's and ultralytics' classifiers."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import urllib.error
from pathlib import Path
from typing import Any, Final

import torch
import torchvision
from torch import Tensor, nn
from ultralytics.nn.tasks import ClassificationModel, yaml_model_load

from distill.classification.classifier import Classifier
from distill.classification.course import COURSE_NAMES, CourseCnn, course_widths
from distill.errors import DistillError
from distill.teacher import find_weights, load_weights

__all__ = ["build_classifier"]

log = logging.getLogger(__name__)

_IMAGENET: Final = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_ULTRALYTICS: Final = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # its classifiers see images from 0 to 1
_PUBLISHED: Final = {"resnet50v2": "timm:resnetv2_50"}


def build_classifier(
    name: str, *, classes: int, height: int, width: int, pretrained: bool = False, subclasses: int = 1
) -> Classifier:
    """Build a network for a number of classes, with fresh or published weights.

    Args:
        name: ``course-cifar10-teacher``, ``cnn-64-256``, a torchvision name such as ``mobilenet_v2``, ``timm:NAME``,
            or an ultralytics classifier such as ``yolov8n-cls.yaml`` or ``yolov8n-cls.pt`` (whose weights are used).
        classes: outputs.
        height: of the images, in pixels.
        width: of the images, in pixels.
        pretrained: start from the weights that the library publishes; the last layer is fresh where its size differs.
        subclasses: logits that the network has for each class; they are pooled to one (see ``Pooled``).

    Raises:
        DistillError: for an unknown name, a library that is not installed, weights that cannot be downloaded, or
            images that are too small.
    """
    outputs = classes * subclasses
    if (course := course_widths(name)) is not None:
        channels, widths = course
        if pretrained:
            raise DistillError(f"{name} has no published weights: drop pretrained, or give another network")
        network: nn.Module = CourseCnn(widths, channels=channels, classes=outputs, height=height, width=width)
        border: dict[str, Any] = {"grey": channels == 1}
    elif name.startswith("timm:") or name in _PUBLISHED:
        network, border = _timm(_PUBLISHED.get(name, name), outputs, pretrained)
    elif Path(name).suffix in {".pt", ".yaml", ".yml"}:
        network, border = _ultralytics(name, outputs), _ULTRALYTICS
    else:
        network, border = _torchvision(name, outputs, pretrained), _IMAGENET
    if subclasses > 1:
        network = Pooled(network, subclasses)
    return Classifier(network, name, height=height, width=width, subclasses=subclasses, **border)


class Pooled(nn.Module):
    """A network with several logits per class, whose class logits are the log of the summed exponentials.

    The softmax over these is the sum of the subclass probabilities (Müller et al. 2020, "Subclass Distillation",
    equation 2).
    """

    def __init__(self, network: nn.Module, subclasses: int) -> None:
        """Take a network with ``classes * subclasses`` outputs, those of a class side by side."""
        super().__init__()
        self.network, self.subclasses = network, subclasses

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (batch, classes)."""
        output = self.network(images)
        logits = output[-1] if isinstance(output, tuple) else output
        return torch.as_tensor(logits.unflatten(1, (-1, self.subclasses)).logsumexp(dim=2))


def _torchvision(name: str, outputs: int, pretrained: bool) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise DistillError(
            f"unknown network {name!r}: give one of {', '.join(COURSE_NAMES)}, cnn-A-B, a torchvision classifier "
            "(such as resnet50 or mobilenet_v2), timm:NAME, or an ultralytics -cls .pt or .yaml"
        )
    single = {"aux_logits": False} if name in {"googlenet", "inception_v3"} else {}
    slow = {"init_weights": True} if single else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=outputs, **single, **slow)
    if pretrained:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        try:
            state = weights.get_state_dict(progress=False, check_hash=True)
        except (urllib.error.URLError, OSError) as error:
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise DistillError(
                f"the published weights of {name} could not be downloaded ({error}): put {weights.url} into {folder}, "
                "or drop pretrained"
            ) from error
        load_matching(network, state, name)
    return network


def _timm(name: str, outputs: int, pretrained: bool) -> tuple[nn.Module, dict[str, Any]]:
    name = name.removeprefix("timm:")
    if importlib.util.find_spec("timm") is None:
        instead = ", or take torchvision's resnet50 (V1.5: not pre-activated)" if name == "resnetv2_50" else ""
        raise DistillError(f"timm:{name} needs timm, which is not installed: pip install timm{instead}")
    timm: Any = importlib.import_module("timm")
    if not timm.is_model(name):
        raise DistillError(
            f"timm has no network {name!r}: python -c 'import timm; print(timm.list_models())' lists them"
        )
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=outputs)
    except OSError as error:  # what its hub raises, offline included
        raise DistillError(
            f"the published weights of timm:{name} could not be downloaded ({error}): drop pretrained"
        ) from error
    config: dict[str, Any] = timm.data.resolve_data_config(model=network)
    return network, {"mean": tuple(config["mean"]), "std": tuple(config["std"])}


def _ultralytics(name: str, outputs: int) -> nn.Module:
    if Path(name).suffix == ".pt":
        checkpoint = load_weights(find_weights(name, "network"), "network")
        config: Any = getattr(checkpoint, "yaml", None)
    else:
        checkpoint = None
        try:
            config = yaml_model_load(name)
        except FileNotFoundError as error:
            raise DistillError(f"network {name!r} not found: give an architecture such as yolov8n-cls.yaml") from error
    head = config["head"][-1][2] if isinstance(config, dict) and config.get("head") else "no"
    if head != "Classify":
        raise DistillError(f"network {name!r} has a {head} head: expected a classifier such as yolov8n-cls.pt")
    network: nn.Module = ClassificationModel({**config, "nc": outputs}, ch=3, nc=outputs, verbose=False)
    if checkpoint is not None:
        load_matching(network, checkpoint.state_dict(), name)
    return network


def load_matching(network: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Load published weights, all but the last layer where its size differs.

    Raises:
        DistillError: when more than the last layer does not match.
    """
    own = network.state_dict()
    matching = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    network.load_state_dict(matching, strict=False)
    fresh = [key for key in own if key not in matching]
    if len(fresh) > 2:  # a weight and a bias
        raise DistillError(f"the weights do not fit {name}: {len(fresh)} tensors differ, such as {fresh[0]}")
    if fresh:
        log.info("%s: %d of %d tensors loaded; %s starts fresh", name, len(matching), len(own), " and ".join(fresh))
