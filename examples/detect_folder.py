"""Count the objects in a folder of images, or in a video; decoding overlaps with inference.

python examples/detect_folder.py runs/deploy/yolov8n-tflite-int8 photos/ > counts.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from pathlib import Path

from deploy.cli import run_command
from deploy.runtime import Detector
from deploy.runtime.stream import Stream


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Count the objects in a folder of images, or in a video.")
    parser.add_argument("bundle", type=Path, help="bundle folder")
    parser.add_argument("source", type=Path, help="folder of images, or a video file")
    parser.add_argument("--conf", type=float, default=0.25, help="lowest score, 0..1 (default: %(default)s)")
    arguments = parser.parse_args()
    return run_command(lambda: count(arguments), ValueError)


def count(arguments: argparse.Namespace) -> int:
    """Print a CSV line for each class met in a frame."""
    detector = Detector(arguments.bundle, conf=arguments.conf)
    names = detector.manifest.class_names
    # An image that cannot be decoded is counted, and told on stderr; the others go on.
    stream = Stream(detector, arguments.source)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["image", "class", "count"])
    for frame, found in stream:
        for class_id, number in sorted(Counter(found.class_ids.tolist()).items()):
            table.writerow([frame.name, names[class_id], number])
    stats = stream.stats()
    print(f"{stats.processed} of {stats.read} frames, {stats.fps:.1f} a second", file=sys.stderr)
    detector.close()
    return 0 if not stats.failed else 1


if __name__ == "__main__":
    raise SystemExit(main())
