"""Drawing what was found on an image, with Pillow alone."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploy.runtime.detections import Detections

if TYPE_CHECKING:  # at run time Pillow is imported when the first image is drawn
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from deploy.runtime.classifier import Classification
    from deploy.runtime.segmenter import Segmentation

_WHITE = (255, 255, 255)
_SHOWN_CLASSES = 3
_MASK_OPACITY = 0.45


def draw_detections(image: NDArray[np.uint8], detections: Detections, class_names: Sequence[str]) -> NDArray[np.uint8]:
    """A copy of `image` with each detection's box, class name and score.

    Args:
        image: (height, width, 3) uint8 RGB.
        detections: boxes in pixels of `image`.
        class_names: index is the class id; an id beyond them is written as a number.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    line_width = max(2, round(max(image.shape[:2]) / 320))
    font = _font(image)
    for index in reversed(range(len(detections))):  # best on top
        class_id = int(detections.class_ids[index])
        left, top, right, bottom = (float(side) for side in detections.boxes_xyxy[index])
        colour = class_colour(class_id)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=line_width)
        text = _text(class_names, class_id, float(detections.scores[index]))
        text_height = draw.textbbox((0, 0), text, font=font)[3] + 2
        _label(draw, font, text, left, top - text_height if top >= text_height else top, colour)
    return np.asarray(canvas)


def draw_segmentation(
    image: NDArray[np.uint8], segmentation: Segmentation, class_names: Sequence[str]
) -> NDArray[np.uint8]:
    """A copy of `image` with each object's mask in its class's colour, half transparent, and as `draw_detections`.

    Args:
        image: (height, width, 3) uint8 RGB.
        segmentation: boxes and masks in pixels of `image`.
        class_names: index is the class id; an id beyond them is written as a number.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    tinted = image.copy()
    for index in reversed(range(len(segmentation))):  # best on top
        mask, colour = segmentation.masks[index], np.array(class_colour(int(segmentation.class_ids[index])))
        tinted[mask] = np.rint((1 - _MASK_OPACITY) * image[mask] + _MASK_OPACITY * colour)
    return draw_detections(tinted, segmentation, class_names)


def draw_classification(
    image: NDArray[np.uint8], classification: Classification, class_names: Sequence[str]
) -> NDArray[np.uint8]:
    """A copy of `image` with its three likeliest classes and their scores in the corner.

    Args:
        image: (height, width, 3) uint8 RGB.
        classification: of this image.
        class_names: index is the class id; an id beyond them is written as a number.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    font = _font(image)
    top = 0.0
    for class_id, score in list(zip(classification.class_ids, classification.scores, strict=True))[:_SHOWN_CLASSES]:
        text = _text(class_names, int(class_id), float(score))
        top = _label(draw, font, text, 0.0, top, class_colour(int(class_id)))
    return np.asarray(canvas)


def class_colour(class_id: int) -> tuple[int, int, int]:
    """An RGB colour, dark enough for white text, far in hue from those of neighbouring class ids."""
    hue = (class_id * 0.618034 + 0.02) % 1.0  # golden-ratio steps never repeat a hue
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def _label(
    draw: ImageDraw, font: FreeTypeFont | ImageFont, text: str, left: float, top: float, colour: tuple[int, int, int]
) -> float:
    """White text on its class's colour; returns where its bottom is."""
    box = draw.textbbox((0, 0), text, font=font)
    bottom = top + box[3] + 2
    draw.rectangle((left, top, left + box[2] + 4, bottom), fill=colour)
    draw.text((left + 2, top), text, fill=_WHITE, font=font)
    return bottom


def _text(class_names: Sequence[str], class_id: int, score: float) -> str:
    return f"{class_names[class_id] if 0 <= class_id < len(class_names) else class_id} {score:.2f}"


def _font(image: NDArray[np.uint8]) -> FreeTypeFont | ImageFont:
    return _font_of_size(max(10, round(max(image.shape[:2]) / 50)))


@functools.lru_cache(maxsize=8)  # reading it takes longer than drawing with it
def _font_of_size(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size=size)
