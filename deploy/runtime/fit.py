"""An image of any size made to fit a network's input, by the one of three ways that its manifest names."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import InputSpec
from deploy.runtime.letterbox import as_rgb, letterbox


def fit_image(image: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """Letterbox, crop or stretch an image.

    "crop" and "stretch" resize as `torchvision.transforms.v2.Resize` does with Pillow images (bilinear, antialiased
    when shrinking) and crop as its `CenterCrop`, to the last bit: ultralytics' classifiers and those of distill are
    trained on such images. Without antialiasing, as OpenCV resizes, a network meets other textures than it learned.

    Args:
        image: (h, w, 3) uint8 RGB, (h, w, 4) RGBA or (h, w) grey.
        spec: size and `fit`.

    Returns:
        (1, height, width, 3) uint8.

    Raises:
        ValueError: `image` is not of this kind, or is empty.
    """
    rgb = as_rgb(image)
    if spec.fit == "letterbox":
        return letterbox(rgb, spec.height, spec.width, spec.pad_value)[0]
    if spec.fit == "crop":
        fitted = _centre_crop(rgb, spec.height, spec.width, spec.resize or max(spec.height, spec.width))
    else:
        fitted = _resize(rgb, spec.height, spec.width)
    return np.array(fitted)[None]  # Pillow's memory may not be written to, a cut-out is not in one piece


def _centre_crop(image: NDArray[np.uint8], height: int, width: int, short_side: int) -> NDArray[np.uint8]:
    rows, columns = image.shape[:2]
    # The long side is cut down to whole pixels, the corner rounded half to even: both as torchvision does.
    if rows <= columns:
        resized = _resize(image, short_side, max(short_side, short_side * columns // rows))
    else:
        resized = _resize(image, max(short_side, short_side * rows // columns), short_side)
    top, left = round((resized.shape[0] - height) / 2), round((resized.shape[1] - width) / 2)
    return resized[top : top + height, left : left + width]


def _resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    from PIL import Image

    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)
