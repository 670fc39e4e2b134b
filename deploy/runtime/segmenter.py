"""From a decoded image to detections with their masks, with a segmentation bundle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle, Manifest
from deploy.manifest_checks import PROTOTYPE_STRIDE
from deploy.runtime.decode import Head, Survivors
from deploy.runtime.detections import Detections
from deploy.runtime.detector import Detector
from deploy.runtime.engine import Engine
from deploy.runtime.letterbox import InputBuffer, Letterbox
from deploy.runtime.nms import nms
from deploy.runtime.options import Options
from deploy.runtime.tasks import check_task
from deploy.runtime.tensors import Outputs, RawTensor


@dataclass(frozen=True)
class Segmentation(Detections):
    """Detections of one image with their masks, best score first.

    Attributes:
        masks: (n, height, width) bool of the source image's size; no pixel outside the box is set.
    """

    masks: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class MaskedSurvivors:
    """What the score threshold lets through of one image, in memory of its own.

    Attributes:
        survivors: boxes, scores, classes and mask coefficients.
        prototypes: (rows, columns, prototypes) float32; without any survivor (0, 0, prototypes).
    """

    survivors: Survivors
    prototypes: NDArray[np.float32]


class Segmenter:
    """A segmentation bundle, opened and ready: `Segmenter("runs/deploy/…")(image)`.

    Boxes are those of `Detector`, which opens such a bundle as well where no mask is needed. Its stages are those of
    `Detector` too, with the same rules for threads and buffers.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        *,
        threads: int | None = None,
        options: Options | None = None,
    ) -> None:
        """Open a bundle; arguments and errors are those of `Detector`.

        Raises:
            BundleError: the bundle is no segmentation bundle.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        check_task(opened.manifest, "segment", str(opened.path))
        self._set(Detector(opened, conf, iou, max_det, threads=threads, options=options))

    @classmethod
    def with_engine(
        cls, engine: Engine, manifest: Manifest, conf: float = 0.25, iou: float = 0.7, max_det: int = 300
    ) -> Segmenter:
        """A segmenter around an engine that is already open; `manifest` describes its input and outputs."""
        check_task(manifest, "segment", "the manifest")
        segmenter = cls.__new__(cls)
        segmenter._set(Detector.with_engine(engine, manifest, conf, iou, max_det))
        return segmenter

    def _set(self, detector: Detector) -> None:
        self.engine: Engine = detector.engine
        self.manifest = detector.manifest
        self.conf, self.iou, self.max_det = detector.conf, detector.iou, detector.max_det
        self._detector = detector
        self._head = Head(detector.manifest)
        self._prototype = [output.meaning for output in detector.manifest.outputs].index("prototype")

    def __call__(self, image: NDArray[np.uint8] | str | Path) -> Segmentation:
        """Segment the objects in one image; arguments and errors are those of a `Detector`'s call."""
        return self.finish(*self._detector.selected(image, self.select))

    def new_buffer(self) -> InputBuffer:
        """Memory for one letterboxed image; see `Detector.new_buffer`."""
        return self._detector.new_buffer()

    def preprocess(
        self, image: NDArray[np.uint8], buffer: InputBuffer | None = None
    ) -> tuple[NDArray[np.uint8], Letterbox]:
        """Letterbox an image; see `Detector.preprocess`."""
        return self._detector.preprocess(image, buffer)

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        """The network's raw outputs; see `Detector.run`."""
        return self._detector.run(pixels)

    def postprocess(self, outputs: Outputs, geometry: Letterbox) -> Segmentation:
        """What `run` or `engine.infer` gave, to detections and masks in source-image pixels."""
        return self.finish(self.select(outputs), geometry)

    def select(self, outputs: Outputs) -> MaskedSurvivors:
        """Copy what scores above the threshold, and the prototypes, out of what `run` or `engine.infer` gave."""
        survivors = self._detector.select(outputs)
        count = self.manifest.outputs[self._prototype].channels
        if not len(survivors.scores):
            return MaskedSurvivors(survivors, np.zeros((0, 0, count), np.float32))
        tensor = outputs[self._prototype]
        cells = tensor.cells() if isinstance(tensor, RawTensor) else tensor
        rows = self.manifest.input.height // PROTOTYPE_STRIDE
        return MaskedSurvivors(survivors, np.array(cells, np.float32).reshape(rows, -1, count))

    def finish(self, found: MaskedSurvivors, geometry: Letterbox) -> Segmentation:
        """Decode and suppress what `select` left, and draw the masks of what remains.

        As in ultralytics, a detection whose mask has no pixel is dropped.
        """
        candidates = self._head.decode(found.survivors)
        kept = nms(candidates.boxes_xyxy, candidates.scores, candidates.class_ids, self.iou, self.max_det)
        boxes = geometry.to_source(candidates.boxes_xyxy[kept])
        masks = draw_masks(found.prototypes, candidates.mask_coefficients[kept], boxes, geometry)
        seen = np.array([mask.any() for mask in masks], np.bool_)
        if not seen.all():
            boxes, kept, masks = boxes[seen], kept[seen], masks[seen]
        return Segmentation(boxes, candidates.scores[kept], candidates.class_ids[kept], masks)

    def close(self) -> None:
        """Free the engine."""
        self._detector.close()


def draw_masks(
    prototypes: NDArray[np.float32],
    coefficients: NDArray[np.float32],
    boxes_xyxy: NDArray[np.float32],
    geometry: Letterbox,
) -> NDArray[np.bool_]:
    """Masks at the size of the source image (YOLACT, Bolya et al. 2019, section 3.3).

    A pixel belongs to an object where sigmoid(coefficients . prototypes) exceeds 0.5, that is where the product is
    above 0, within the object's box. The product is upsampled bilinearly to source pixels before it is compared, in
    the steps of ultralytics' `process_mask_native` (8.4, `retina_masks=True`); only the part of it below the box is
    ever computed.

    Args:
        prototypes: (rows, columns, p), one cell for 4 x 4 input pixels.
        coefficients: (n, p).
        boxes_xyxy: (n, 4) in source pixels.
        geometry: where the source image lies in the input.

    Returns:
        (n, source height, source width).
    """
    height, width = geometry.source_height, geometry.source_width
    masks = np.zeros((len(boxes_xyxy), height, width), np.bool_)
    if not len(masks):
        return masks
    finer = _finer(prototypes.shape[:2], height, width)
    for mask, weights, box in zip(masks, coefficients, boxes_xyxy.tolist(), strict=True):
        left, top, right, bottom = (math.ceil(side) for side in box)  # pixel x is inside where left <= x < right
        if left >= right or top >= bottom or not np.isfinite(weights).all():
            continue
        rows, columns = _Axis(top, bottom, 0, finer), _Axis(left, right, 1, finer)
        with np.errstate(over="ignore", invalid="ignore"):  # a sum that is no number sets no pixel
            logits = prototypes[rows.first : rows.last + 1, columns.first : columns.last + 1] @ weights
            mask[top:bottom, left:right] = columns.upsampled(rows.upsampled(logits).T).T > 0
    return masks


@dataclass(frozen=True)
class _Finer:
    """The prototypes' grid made so much finer that the letterbox' border ends between two of its cells.

    Attributes:
        cells: rows and columns of prototypes.
        factor: 1, 2 or 4.
        first: finer row and column at which the source image begins.
        count: finer rows and columns that it covers.
        source: height and width of the source image.
    """

    cells: tuple[int, ...]
    factor: int
    first: tuple[int, int]
    count: tuple[int, int]
    source: tuple[int, int]


def _finer(cells: tuple[int, ...], height: int, width: int) -> _Finer:
    sides = [PROTOTYPE_STRIDE * side for side in cells]
    border = (sides[0] - _inner(sides, height, width, 0)) | (sides[1] - _inner(sides, height, width, 1))
    factor = PROTOTYPE_STRIDE // math.gcd(PROTOTYPE_STRIDE, border | border // 2)
    finer = [factor * side for side in cells]
    count = _inner(finer, height, width, 0), _inner(finer, height, width, 1)
    first = round((finer[0] - count[0]) / 2 - 0.1), round((finer[1] - count[1]) / 2 - 0.1)
    return _Finer(cells, factor, first, count, (height, width))


def _inner(sides: Sequence[int], height: int, width: int, axis: int) -> int:
    """Of `sides` rows and columns, how many the letterboxed image covers along an axis."""
    gain = min(sides[0] / height, sides[1] / width)
    return max(1, round((height, width)[axis] * gain))


class _Axis:
    """Upsampling along one axis, for the source rows or columns `start` to `stop` alone."""

    def __init__(self, start: int, stop: int, axis: int, finer: _Finer) -> None:
        count = finer.count[axis]
        places = (np.arange(start, stop) + 0.5) * (count / finer.source[axis]) - 0.5
        self._outer = _Taps(finer.first[axis] + np.clip(places, 0, count - 1), finer.first[axis] + count)
        between = (np.arange(self._outer.first, self._outer.last + 1) + 0.5) / finer.factor - 0.5
        self._inner = _Taps(np.clip(between, 0, finer.cells[axis] - 1), finer.cells[axis])
        self.first, self.last = self._inner.first, self._inner.last

    def upsampled(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows `first` to `last` of the prototypes' grid to one for each of the source's."""
        return self._outer.mix(self._inner.mix(values))


class _Taps:
    """The two cells that each of some places lies between, and their weights (linear interpolation)."""

    def __init__(self, places: NDArray[np.float64], cells: int) -> None:
        """`places`, ascending, lie within 0..cells - 1."""
        low = places.astype(np.int64)
        self.first, self.last = int(low[0]), min(int(low[-1]) + 1, cells - 1)
        self._low = low - self.first
        self._high = np.minimum(self._low + 1, self.last - self.first)
        self._part = (places - low).astype(np.float32)[:, None]

    def mix(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows `first` to `last` of the cells to one row for each place."""
        mixed = values[self._low]
        mixed += (values[self._high] - mixed) * self._part
        return mixed
