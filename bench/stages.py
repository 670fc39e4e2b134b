"""What the worker runs, by the task of the bundle: the three timed stages, and the pass that is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.wire import encode_classes, encode_detections
from deploy.bundle import Manifest
from deploy.runtime import Classifier, Detector, Engine, Segmenter

# What validation uses: a score threshold so low that the whole precision-recall curve is there.
_DETECTION_ACCURACY: Mapping[str, Any] = {"conf": 0.001, "iou": 0.7, "max_det": 300, "multi_label": True}
_CLASS_ACCURACY: Mapping[str, Any] = {"top_k": 5}


@dataclass(frozen=True)
class Stages:
    """The three stages of a bundle's task, by the path that a call of its `Detector`, … takes.

    Attributes:
        preprocess: an image to the network's input and whatever else `postprocess` needs.
        run: the input to the raw outputs, in the engine's own memory.
        postprocess: the raw outputs and the rest to what was found.
        settings: the thresholds that `postprocess` works with.
    """

    preprocess: Callable[[NDArray[np.uint8]], tuple[Any, ...]]
    run: Callable[[NDArray[np.uint8]], Any]
    postprocess: Callable[..., Any]
    settings: Mapping[str, Any]


def timed_stages(engine: Engine, manifest: Manifest) -> Stages:
    """The stages with the defaults that a user gets."""
    if manifest.task == "classify":
        classifier = Classifier.with_engine(engine, manifest)

        def fit(image: NDArray[np.uint8]) -> tuple[Any, ...]:
            return (classifier.preprocess(image),)

        return Stages(fit, classifier.run, classifier.postprocess, {"top_k": classifier.top_k})
    usual = manifest.thresholds
    settings = {"conf": usual.conf, "iou": usual.iou, "max_det": usual.max_det}
    opener: type[Segmenter] | type[Detector] = Segmenter if manifest.task == "segment" else Detector
    model = opener.with_engine(engine, manifest, usual.conf, usual.iou, usual.max_det)
    buffer = model.new_buffer()

    def letterbox(image: NDArray[np.uint8]) -> tuple[Any, ...]:
        return model.preprocess(image, buffer)

    return Stages(letterbox, model.run, model.postprocess, settings)


def accuracy_settings(manifest: Manifest) -> Mapping[str, Any]:
    """The thresholds of the pass that is scored."""
    return _CLASS_ACCURACY if manifest.task == "classify" else _DETECTION_ACCURACY


def recorder(engine: Engine, manifest: Manifest) -> Callable[[int, str], dict[str, Any]]:
    """What makes the record of an image of the scored pass from its index and its file; see `bench.wire`.

    Of a segmenter the boxes are scored.
    """
    settings = accuracy_settings(manifest)
    if manifest.task == "classify":
        classifier = Classifier.with_engine(engine, manifest, **settings)
        return lambda index, path: encode_classes(index, classifier(path))
    detector = Detector.with_engine(engine, manifest, **settings)
    return lambda index, path: encode_detections(index, detector(path))
