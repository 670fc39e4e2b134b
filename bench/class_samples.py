"""The images that classifiers got wrong while they were surest, as tiles for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.classes_file import ClassesFile
from bench.samples import over_the_first_images, small_jpeg
from deploy.errors import DatasetError
from deploy.runtime import read_image

COUNT = 8
_LEAST_WIDTH = 112  # px to show a tile at: small networks take thumbnails


@dataclass(frozen=True)
class Mistake:
    """One image that was classified wrongly.

    Attributes:
        name: file name.
        truth: its class.
        said: name of each bundle, the class it named first, and the score of that in 0..1.
        data_uri: a small JPEG.
        width: px to show it at.
        height: px to show it at.
    """

    name: str
    truth: str
    said: tuple[tuple[str, str, float], ...]
    data_uri: str
    width: int
    height: int


def draw_mistakes(files: Sequence[tuple[str, ClassesFile]], count: int = COUNT) -> tuple[list[Mistake], list[str]]:
    """Choose images and draw them.

    Args:
        files: name of each bundle and its classes; only those over the same images as the first are looked at.
        count: most images.

    Returns:
        The mistakes, surest first (on average over the bundles, one that is right counting 0), and one line for each
        thing that could not be shown.
    """
    if not files:
        return [], []
    images = files[0][1].images
    alike, notes = over_the_first_images(files, "mistakes")
    sureness = np.mean([_wrong_score(file) for _, file in alike], axis=0)
    mistakes: list[Mistake] = []
    for index in np.argsort(-sureness, kind="stable").tolist():
        if len(mistakes) == count or sureness[index] <= 0:
            break
        try:
            pixels = read_image(images[index])
        except DatasetError:
            continue  # the data set was moved or changed since
        mistakes.append(_mistake(index, pixels, alike))
    if not mistakes and (sureness > 0).any():
        notes.append(f"the images that were classified can no longer be read, e.g. below {Path(images[0]).parent}")
    return mistakes, notes


def mistake_section(mistakes: Sequence[Mistake]) -> str:
    """HTML text of the mistakes; empty without any."""
    if not mistakes:
        return ""
    tiles = "".join(_tile(mistake) for mistake in mistakes)
    return (
        '<section><h2>Surest mistakes</h2><p class="soft">Images whose class was not named first, the surest ones '
        "on average over all bundles. In bold the true class; below it what each bundle said, with its score.</p>"
        f'<div class="tiles">{tiles}</div></section>'
    )


def _wrong_score(file: ClassesFile) -> NDArray[np.float64]:
    """(n,) score of the class named first where it is wrong, else 0."""
    if not file.class_ids.shape[1]:
        return np.zeros(len(file.truth))
    wrong = (file.class_ids[:, 0] != file.truth) & (file.class_ids[:, 0] >= 0)
    return np.where(wrong, file.scores[:, 0].astype(np.float64), 0.0)


def _mistake(index: int, pixels: NDArray[np.uint8], files: Sequence[tuple[str, ClassesFile]]) -> Mistake:
    first = files[0][1]
    said = []
    for name, file in files:
        class_id = int(file.class_ids[index, 0]) if file.class_ids.shape[1] else -1
        named = file.class_names[class_id] if class_id >= 0 else "nothing"
        said.append((name, named, float(file.scores[index, 0]) if class_id >= 0 else 0.0))
    data_uri, width, height = small_jpeg(pixels)
    enlarged = max(1.0, _LEAST_WIDTH / width)
    truth = first.class_names[int(first.truth[index])]
    return Mistake(
        Path(first.images[index]).name, truth, tuple(said), data_uri, round(width * enlarged), round(height * enlarged)
    )


def _tile(mistake: Mistake) -> str:
    lines = "".join(f"<br>{escape(name)}: {escape(named)} {score:.2f}" for name, named, score in mistake.said)
    description = escape(f"{mistake.name}: {mistake.truth}", quote=True)
    return (
        f'<figure class="tile"><img src="{mistake.data_uri}" width="{mistake.width}" height="{mistake.height}" '
        f'alt="{description}"><figcaption><b>{escape(mistake.truth)}</b>{lines}</figcaption></figure>'
    )
