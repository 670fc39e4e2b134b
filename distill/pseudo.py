"""``python -m distill.pseudo``: label an unlabelled folder with a teacher."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    from distill.arguments import at_least, image_size, number_within
    from distill.command import run_command
    from distill.pseudo_labels import PseudoLabels, label_folder
except ModuleNotFoundError as missing:
    package = str(missing.name).partition(".")[0]
    advice = "pip install -e '.[train]' in the checkout of edge-distill"
    raise SystemExit(f"error: {package} is not installed: {advice}") from None

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    asked = PseudoLabels(**{name: value for name, value in vars(args).items() if name != "json"})
    records: list[Path] = []
    code = run_command(lambda: records.append(label_folder(asked)), lambda: ": nothing was kept")
    if records:
        text = records[0].read_text(encoding="utf-8")
        sys.stdout.write(text if args.json else _summary(json.loads(text), args.out))
        sys.stderr.write(f"next: python -m distill.yolo --data {shlex.quote(str(args.out / 'data.yaml'))}\n")
    return code


def _summary(record: dict[str, Any], out: Path) -> str:
    """What is printed of a finished data set."""
    images, data = record["images"], record["data"]
    kinds = ", ".join(f"{count:,} {name}" for name, count in record["boxes"].items() if count)
    known = f"{images['already_labelled']:,} already labelled, {images['duplicates']:,} twice"
    validated = (
        f"on the images of {data['yaml']}"
        if data
        else "on a tenth of these images: it says how well a student agrees with the teacher, not how good it is"
    )
    return (
        f"data      {out / 'data.yaml'}\n"
        f"images    {images['labelled']:,} labelled of {images['found']:,}; {len(images['without_boxes']):,} without a "
        f"box are left out; {known}\n"
        f"boxes     {kinds} (score at least {record['conf']:.3g})\n"
        f"validated {validated}\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.pseudo",
        description="Label an unlabelled folder with a teacher. Writes a data set: OUT/data.yaml, images, labels, and "
        "pseudo.json, which says how it came about.",
    )
    add = parser.add_argument
    add("--teacher", required=True, metavar="PT", help="detector that labels, such as yolov8x.pt")
    add("--images", required=True, type=Path, metavar="FOLDER", help="unlabelled images, in it or below")
    add("--out", required=True, type=Path, metavar="FOLDER", help="new data set")
    add("--data", metavar="YAML", help="labelled data to join: it validates, and its training images are added")
    add(
        "--conf",
        type=_confidence,
        default=0.5,
        metavar="P|match",
        help="lowest score of a label (0.5); match: as many boxes an image as --data has",
    )
    add("--imgsz", type=image_size, default=640, metavar="PX", help="the teacher's image size (640)")
    add("--flip", action="store_true", help="merge with what is found in the mirrored image")
    add("--limit", type=at_least(1), metavar="N", help="only the first N images (all)")
    add("--device", default="", help="cpu, or 0 (the first GPU if there is one, else cpu)")
    add("--json", action="store_true", help="print pseudo.json instead of the summary")
    return parser


def _confidence(text: str) -> float | None:
    return None if text == "match" else number_within(0, "from 0 to 1, or match", 1)(text)


if __name__ == "__main__":
    sys.exit(main())
