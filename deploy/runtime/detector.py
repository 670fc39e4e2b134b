"""From a decoded image to detections, with any bundle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle, Manifest
from deploy.runtime.decode import decode
from deploy.runtime.detections import Detections
from deploy.runtime.engine import Engine, load_engine
from deploy.runtime.image import read_image
from deploy.runtime.letterbox import Letterbox, letterbox
from deploy.runtime.nms import nms


class Detector:
    """A bundle, opened and ready: `Detector("runs/deploy/…")(image)`.

    The three stages `preprocess`, `engine.infer` and `postprocess` are public, so that each can be timed.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        *,
        threads: int | None = None,
        multi_label: bool = False,
    ) -> None:
        """Open a bundle.

        Args:
            bundle: a bundle folder or an opened bundle.
            conf: detections score above this, 0..1.
            iou: a box is dropped if a better one of its class overlaps it by more than this, 0..1.
            max_det: the most detections of an image.
            threads: for one inference; default all processors this process may use.
            multi_label: let one cell report several classes, as validation does.

        Raises:
            ValueError: `conf` or `iou` outside 0..1, or `max_det` below 1.
            BundleError: no such bundle, or one that was changed.
            EngineNotInstalledError: the bundle's runtime is missing.
            EngineError: the runtime refuses the model.
        """
        _check_thresholds(conf, iou, max_det)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        engine = load_engine(opened, default_threads() if threads is None else threads)
        self._set(engine, opened.manifest, conf, iou, max_det, multi_label)

    @classmethod
    def with_engine(
        cls,
        engine: Engine,
        manifest: Manifest,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        *,
        multi_label: bool = False,
    ) -> Detector:
        """A detector around an engine that is already open; `manifest` describes its input and outputs."""
        _check_thresholds(conf, iou, max_det)
        detector = cls.__new__(cls)
        detector._set(engine, manifest, conf, iou, max_det, multi_label)
        return detector

    def _set(
        self, engine: Engine, manifest: Manifest, conf: float, iou: float, max_det: int, multi_label: bool
    ) -> None:
        self.engine = engine
        self.manifest = manifest
        self.conf, self.iou, self.max_det, self.multi_label = conf, iou, max_det, multi_label

    def __call__(self, image: NDArray[np.uint8] | str | Path) -> Detections:
        """Detect objects in one image.

        Args:
            image: a file, or pixels uint8: (height, width, 3) RGB, (height, width, 4) RGBA or (height, width) grey.

        Raises:
            DatasetError: the file cannot be read.
            ValueError: the array is not an image.
        """
        pixels, geometry = self.preprocess(read_image(image) if isinstance(image, (str, Path)) else image)
        return self.postprocess(self.engine.infer(pixels), geometry)

    def preprocess(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Letterbox]:
        """Letterbox an image to (1, height, width, 3) uint8 of the network's input size."""
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        elif image.ndim == 3 and image.shape[2] == 4:
            image = image[..., :3]
        spec = self.manifest.input
        return letterbox(image, spec.height, spec.width, spec.pad_value)

    def postprocess(self, outputs: Sequence[NDArray[np.float32]], geometry: Letterbox) -> Detections:
        """Raw head tensors to detections in source-image pixels."""
        boxes, scores, class_ids = decode(outputs, self.manifest, self.conf, self.multi_label)
        kept = nms(boxes, scores, class_ids, self.iou, self.max_det)
        return Detections(geometry.to_source(boxes[kept]), scores[kept], class_ids[kept])

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()


def default_threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_thresholds(conf: float, iou: float, max_det: int) -> None:
    if not 0.0 <= conf <= 1.0 or not 0.0 <= iou <= 1.0:
        raise ValueError(f"conf is {conf} and iou is {iou}, expected 0..1")
    if max_det < 1:
        raise ValueError(f"max_det is {max_det}, expected at least 1")
