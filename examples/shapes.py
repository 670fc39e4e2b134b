"""Generate a small detection data set of drawn shapes, the same for the same seed."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CLASS_NAMES = ("disc", "triangle", "star")
WIDTH, HEIGHT = 320, 240


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for images/, labels/ and shapes.yaml")
    parser.add_argument("--train", type=int, default=320, help="training images (default: 320)")
    parser.add_argument("--val", type=int, default=64, help="validation images (default: 64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn (default: 0)")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} already exists: choose another --out or remove it")
    for split, count, offset in (("train", arguments.train, 0), ("val", arguments.val, 1_000_000)):
        write_split(arguments.out, split, count, arguments.seed + offset)
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASS_NAMES))
    (arguments.out / "shapes.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}")
    print(arguments.out / "shapes.yaml")
    return 0


def write_split(root: Path, split: str, count: int, seed: int) -> None:
    """Write `count` images with labels below `root`, image k drawn from (seed, k) alone."""
    images, labels = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(count):
        image, rows = draw_image(np.random.default_rng((seed, index)))
        image.save(images / f"{index:05d}.jpg", quality=92)
        text = "".join(f"{class_id} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for class_id, x, y, w, h in rows)
        (labels / f"{index:05d}.txt").write_text(text)


def draw_image(rng: np.random.Generator) -> tuple[Image.Image, list[tuple[int, float, float, float, float]]]:
    """One image (320 x 240 RGB) and its labels (class id, then centre x, y, width, height as fractions)."""
    image = _background(rng)
    rows: list[tuple[int, float, float, float, float]] = []
    placed: list[tuple[float, float, float]] = []
    for _ in range(rng.integers(1, 6)):
        radius = float(rng.uniform(20, 60))
        x = float(rng.uniform(radius, WIDTH - radius))
        y = float(rng.uniform(radius, HEIGHT - radius))
        # Shapes may touch but not hide each other: a covered truth teaches nothing.
        if any(math.hypot(x - px, y - py) < 0.8 * (radius + other) for px, py, other in placed):
            continue
        placed.append((x, y, radius))
        class_id = int(rng.integers(len(CLASS_NAMES)))
        points = _outline(class_id, x, y, radius, float(rng.uniform(0, 2 * math.pi)))
        _paint(image, points, rng)
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, WIDTH), min(bottom, HEIGHT)
        rows.append(
            (
                class_id,
                float(left + right) / 2 / WIDTH,
                float(top + bottom) / 2 / HEIGHT,
                float(right - left) / WIDTH,
                float(bottom - top) / HEIGHT,
            )
        )
    noise = rng.normal(0, rng.uniform(2, 10), (HEIGHT, WIDTH, 3))
    blurred = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.2))))
    return Image.fromarray(np.clip(np.asarray(blurred) + noise, 0, 255).astype(np.uint8)), rows


def _background(rng: np.random.Generator) -> Image.Image:
    """A smooth gradient between random colours, with stray lines that are no object."""
    corners = rng.uniform(20, 130, (2, 2, 3)).astype(np.uint8)
    image = Image.fromarray(corners).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 10)):
        ends = [float(v) for v in rng.uniform(-20, WIDTH + 20, 4)]
        draw.line(ends, fill=_colour(rng), width=int(rng.integers(1, 4)))
    return image


def _outline(class_id: int, x: float, y: float, radius: float, angle: float) -> np.ndarray:
    """Corner points (n, 2) of a shape in pixels."""
    corners = (40, 3, 10)[class_id]
    angles = angle + np.arange(corners) * 2 * math.pi / corners
    radii = np.where(np.arange(corners) % 2 == 0, radius, 0.45 * radius) if class_id == 2 else np.full(corners, radius)
    return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)


def _paint(image: Image.Image, points: np.ndarray, rng: np.random.Generator) -> None:
    outline = [(float(px), float(py)) for px, py in points]
    ImageDraw.Draw(image).polygon(
        outline, fill=_colour(rng, darkest=90), outline=_colour(rng), width=int(rng.integers(1, 4))
    )


def _colour(rng: np.random.Generator, darkest: int = 0) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in rng.integers(darkest, 256, 3))
    return red, green, blue


if __name__ == "__main__":
    sys.exit(main())
