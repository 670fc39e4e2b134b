"""`python -m deploy.detect`: run a bundle on image files and draw what it finds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import find_bundles
from deploy.cli import log, number_within, positive_whole_number, run_command, unused_path, whole_folder
from deploy.dataset import IMAGE_SUFFIXES, image_files
from deploy.errors import BundleError, DatasetError
from deploy.runtime import Detections, Detector, draw_detections, read_image


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _detect(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.detect", description="Detect objects in images with a bundle and draw them."
    )
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    parser.add_argument("--bundle", type=Path, help="bundle folder (default: the newest below runs/)")
    parser.add_argument("--out", type=Path, help="folder for the drawn images (default: runs/detect/BUNDLE)")
    parser.add_argument("--conf", type=_fraction, help="lowest score, 0..1 (default: the bundle's, 0.25)")
    parser.add_argument("--iou", type=_fraction, help="NMS overlap, 0..1 (default: the bundle's, 0.7)")
    parser.add_argument(
        "--max-det", type=positive_whole_number, help="most detections an image (default: the bundle's, 300)"
    )
    parser.add_argument(
        "--threads", type=positive_whole_number, help="threads of one inference (default: all processors)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per image instead of text")
    return parser


def _fraction(text: str) -> float:
    return number_within(0.0, 1.0, text)


def _detect(arguments: argparse.Namespace) -> int:
    paths = _image_paths(arguments.images)
    bundle = arguments.bundle or _newest_bundle()
    detector = _detector(bundle, arguments)
    class_names = detector.manifest.class_names
    out = arguments.out or unused_path(Path("runs/detect") / Path(bundle).resolve().name)
    with whole_folder(out) as folder:
        for path, name in zip(paths, _unique_stems(paths), strict=True):
            image = read_image(path)
            detections = detector(image)
            _save(draw_detections(image, detections, class_names), folder / f"{name}.jpg")
            record = _record(path, detections, class_names)
            print(json.dumps(record) if arguments.json else _line(record))  # noqa: T201
            sys.stdout.flush()
    log(f"drawn images: {out}")
    return 0


def _image_paths(given: Sequence[Path]) -> list[Path]:
    paths: list[Path] = []
    for path in given:
        if path.is_dir():
            found = image_files(path)
            if not found:
                raise DatasetError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
            paths += found
        elif not path.exists():
            raise DatasetError(f"no image {path}: check the path")
        else:
            paths.append(path)
    return paths


def _unique_stems(paths: Sequence[Path]) -> list[str]:
    """The files' names without suffix; a name met before gets -2, -3, …"""
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 1
        while name in names:
            number += 1
            name = f"{path.stem}-{number}"
        names.append(name)
    return names


def _newest_bundle() -> Path:
    bundles = find_bundles(Path("runs"))
    if not bundles:
        raise BundleError("no bundle below runs/: make one with python -m deploy.onnx, or give --bundle")
    log(f"bundle: {bundles[0]}")
    return bundles[0]


def _detector(bundle: Path, arguments: argparse.Namespace) -> Detector:
    detector = Detector(bundle, threads=arguments.threads)
    defaults = detector.manifest.thresholds
    detector.conf = defaults.conf if arguments.conf is None else arguments.conf
    detector.iou = defaults.iou if arguments.iou is None else arguments.iou
    detector.max_det = defaults.max_det if arguments.max_det is None else arguments.max_det
    return detector


def _save(image: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    Image.fromarray(image).save(path, quality=90)


def _record(path: Path, detections: Detections, class_names: Sequence[str]) -> dict[str, Any]:
    rows = zip(detections.class_ids, detections.scores, detections.boxes_xyxy, strict=True)
    return {
        "image": str(path),
        "detections": [
            {
                "class": class_names[class_id],
                "score": round(float(score), 4),
                "box_xyxy": [round(float(side), 1) for side in box],
            }
            for class_id, score, box in rows
        ],
    }


def _line(record: dict[str, Any]) -> str:
    found = ", ".join(f"{item['class']} {item['score']:.2f}" for item in record["detections"])
    return f"{record['image']}: {found or 'nothing'}"


if __name__ == "__main__":
    sys.exit(main())
