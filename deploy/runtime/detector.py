"""From a decoded image to detections, with any bundle."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle, Manifest
from deploy.runtime.decode import Head, Survivors
from deploy.runtime.detections import Detections
from deploy.runtime.engine import Engine, load_engine
from deploy.runtime.image import read_image
from deploy.runtime.letterbox import InputBuffer, Letterbox
from deploy.runtime.nms import nms
from deploy.runtime.options import Options
from deploy.runtime.tasks import check_task
from deploy.runtime.tensors import Outputs

Selected = TypeVar("Selected")


class Detector:
    """A bundle, opened and ready: `Detector("runs/deploy/…")(image)`.

    A detector works on one image at a time. Called from several threads at once it is safe, and they wait for each
    other. Its stages are public, so that each can be timed, or run in a thread of its own:

        buffer = detector.new_buffer()                        # one for each frame in flight
        pixels, geometry = detector.preprocess(image, buffer)
        outputs = detector.run(pixels)                        # valid until the next run
        detections = detector.postprocess(outputs, geometry)

    `postprocess` is `finish(select(outputs), geometry)`: `select` copies out of the engine's memory the little that
    matters, so that `finish` may run elsewhere while the engine is at the next image. `preprocess`, `select` and
    `finish` may run in several threads at once, each with a buffer of its own; `run` in one at a time. Detections
    are always in memory of their own.
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
        options: Options | None = None,
    ) -> None:
        """Open a bundle.

        Args:
            bundle: a bundle folder or an opened bundle.
            conf: detections score above this, 0..1.
            iou: a box is dropped if a better one of its class overlaps it by more than this, 0..1.
            max_det: the most detections of an image.
            threads: for one inference; default all processors this process may use.
            multi_label: let one cell report several classes, as validation does.
            options: engine options by name, before those of the manifest; `deploy.runtime.options.OPTIONS` lists them.

        Raises:
            ValueError: `conf` or `iou` outside 0..1, or `max_det` below 1.
            BundleError: no such bundle, or one that was changed.
            EngineNotInstalledError: the bundle's runtime is missing.
            EngineError: the runtime refuses the model, or an option is unknown or out of range.
        """
        _check_thresholds(conf, iou, max_det)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        engine = load_engine(opened, default_threads() if threads is None else threads, options)
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
        if manifest.task == "classify":  # of a segmenter's bundle it finds the boxes
            check_task(manifest, "detect", "the bundle")
        self._head = Head(manifest)
        self._lock = threading.Lock()
        self._buffer: InputBuffer | None = None  # made at the first call: stages alone do without

    def __call__(self, image: NDArray[np.uint8] | str | Path) -> Detections:
        """Detect objects in one image.

        Args:
            image: a file, or pixels uint8: (height, width, 3) RGB, (height, width, 4) RGBA, (height, width) or
                (height, width, 1) grey.

        Raises:
            DatasetError: the file cannot be read.
            ValueError: the array is not an image.
        """
        return self.finish(*self.selected(image, self.select))

    def selected(
        self, image: NDArray[np.uint8] | str | Path, select: Callable[[Outputs], Selected]
    ) -> tuple[Selected, Letterbox]:
        """What `select` takes out of the network's outputs for an image, and the geometry to finish it with.

        Raises:
            DatasetError: the file cannot be read.
            ValueError: the array is not an image.
        """
        decoded = read_image(image) if isinstance(image, (str, Path)) else image
        with self._lock:
            if self._buffer is None:
                own_buffer = getattr(self.engine, "own_buffer", None)
                self._buffer = (own_buffer() if own_buffer else None) or self.new_buffer()
            pixels, geometry = self.preprocess(decoded, self._buffer)
            return select(self.run(pixels)), geometry

    def detect_batch(self, images: Iterable[NDArray[np.uint8] | str | Path]) -> Iterator[Detections]:
        """Detections of one image after the other, in their order, each as soon as it is there.

        Bundles take one image at a time, so a batch is a loop. To overlap reading and preprocessing with inference
        use a stream, which costs threads and keeps several frames in memory.
        """
        return map(self, images)

    def new_buffer(self) -> InputBuffer:
        """Memory for one letterboxed image, for `preprocess` to use again and again."""
        spec = self.manifest.input
        return InputBuffer(spec.height, spec.width, spec.pad_value)

    def preprocess(
        self, image: NDArray[np.uint8], buffer: InputBuffer | None = None
    ) -> tuple[NDArray[np.uint8], Letterbox]:
        """Letterbox an image to (1, height, width, 3) uint8 of the network's input size.

        Args:
            image: as for a call, but no file.
            buffer: where to; None takes new memory, which costs some time.

        Returns:
            The pixels, valid until `buffer` is used again, and the geometry that maps boxes back.

        Raises:
            ValueError: the array is not an image.
        """
        buffer = buffer or self.new_buffer()
        geometry = buffer.fill(image)
        return buffer.pixels, geometry

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """The network's raw outputs, in the engine's own memory where it offers that: valid until the next run."""
        run = getattr(self.engine, "run", self.engine.infer)
        return cast(Outputs, run(pixels))

    def postprocess(self, outputs: Outputs, geometry: Letterbox) -> Detections:
        """What `run` or `engine.infer` gave, to detections in source-image pixels."""
        return self.finish(self.select(outputs), geometry)

    def select(self, outputs: Outputs) -> Survivors:
        """Copy what scores above the threshold out of what `run` or `engine.infer` gave."""
        return self._head.select(outputs, self.conf, self.multi_label)

    def finish(self, survivors: Survivors, geometry: Letterbox) -> Detections:
        """Decode and suppress what `select` left, and map it to source-image pixels."""
        found = self._head.decode(survivors)
        kept = nms(found.boxes_xyxy, found.scores, found.class_ids, self.iou, self.max_det)
        boxes = geometry.to_source(found.boxes_xyxy.take(kept, axis=0))
        return Detections(boxes, found.scores.take(kept), found.class_ids.take(kept))

    def close(self) -> None:
        """Free the engine."""
        self._buffer = None  # perhaps the engine's own memory
        self.engine.close()


def default_threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_thresholds(conf: float, iou: float, max_det: int) -> None:
    if not 0.0 <= conf <= 1.0 or not 0.0 <= iou <= 1.0:
        raise ValueError(f"conf is {conf} and iou is {iou}, expected 0..1")
    if max_det < 1:
        raise ValueError(f"max_det is {max_det}, expected at least 1")
