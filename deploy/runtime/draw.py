"""Drawing detections on an image, with Pillow alone."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deploy.runtime.detections import Detections


def draw_detections(image: NDArray[np.uint8], detections: Detections, class_names: Sequence[str]) -> NDArray[np.uint8]:
    """A copy of `image` with each detection's box, class name and score.

    Args:
        image: (height, width, 3) uint8 RGB.
        detections: boxes in pixels of `image`.
        class_names: index is the class id; an id beyond them is written as a number.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    line_width = max(2, round(max(image.shape[:2]) / 320))
    font = ImageFont.load_default(size=max(10, round(max(image.shape[:2]) / 50)))
    for index in reversed(range(len(detections))):  # best on top
        class_id = int(detections.class_ids[index])
        name = class_names[class_id] if 0 <= class_id < len(class_names) else str(class_id)
        left, top, right, bottom = (float(side) for side in detections.boxes_xyxy[index])
        colour = class_colour(class_id)
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=line_width)
        text = f"{name} {detections.scores[index]:.2f}"
        box = draw.textbbox((0, 0), text, font=font)
        text_height = box[3] + 2
        text_top = top - text_height if top >= text_height else top
        draw.rectangle((left, text_top, left + box[2] + 4, text_top + text_height), fill=colour)
        draw.text((left + 2, text_top), text, fill=(255, 255, 255), font=font)
    return np.asarray(canvas)


def class_colour(class_id: int) -> tuple[int, int, int]:
    """An RGB colour, dark enough for white text, far in hue from those of neighbouring class ids."""
    hue = (class_id * 0.618034 + 0.02) % 1.0  # golden-ratio steps never repeat a hue
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)
