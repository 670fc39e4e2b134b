"""Detect objects in one image and save it with the boxes drawn.

python examples/detect_image.py runs/deploy/yolov8n-tflite-int8 street.jpg --out street-found.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from deploy.cli import run_command
from deploy.errors import DeployError
from deploy.runtime import Detector, draw_detections, read_image


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Detect objects in one image.")
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("image", type=Path, help="image file")
    parser.add_argument("--out", type=Path, help="where to save the image with the boxes drawn")
    parser.add_argument("--conf", type=float, default=0.25, help="lowest score, 0..1 (default: %(default)s)")
    arguments = parser.parse_args()
    return run_command(lambda: detect(arguments), ValueError)


def detect(arguments: argparse.Namespace) -> int:
    """Print what is found, best first, and save the drawn image where one is asked for."""
    if arguments.out and arguments.out.exists():
        raise DeployError(f"{arguments.out} already exists: choose another --out or remove it")
    detector = Detector(arguments.bundle, conf=arguments.conf)
    image = read_image(arguments.image)  # (height, width, 3) uint8 RGB
    found = detector(image)
    names = detector.manifest.class_names
    for class_id, score, (left, top, right, bottom) in zip(
        found.class_ids, found.scores, found.boxes_xyxy, strict=True
    ):
        print(f"{names[class_id]} {score:.2f} from ({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f})")
    if arguments.out:
        Image.fromarray(draw_detections(image, found, names)).save(arguments.out)
    detector.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
