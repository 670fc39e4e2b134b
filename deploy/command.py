"""The command line that the targets share."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from deploy.build import DEFAULT_CALIBRATION_IMAGES, DEFAULT_MAX_DROP_POINTS, build_bundle
from deploy.bundle import Bundle
from deploy.calibration import YAML_SUFFIXES
from deploy.cli import log, number_within, positive_whole_number, run_command, unused_path
from deploy.errors import CalibrationError
from deploy.image_folder import is_image_folder
from deploy.quantization import CALIBRATED, DEFAULT_PERCENTILE, RANGE_METHODS, Quantization, parse_layers, parse_ranges
from deploy.repair.names import METHOD_NAMES, NONE, parse_methods
from deploy.student import find_student
from deploy.target import Target

AUTO = "auto"


def run_target(target: Target, argv: Sequence[str] | None) -> int:
    """The command line of a target; returns the exit code."""
    parser = _parser(target)
    arguments = parser.parse_args(argv)
    calibrates = arguments.precision in (*CALIBRATED, AUTO)
    if arguments.calibration and not calibrates and not _is_data_set(arguments.calibration):
        parser.error(f"--calibration with a folder of images is of use with {' or '.join(CALIBRATED)} alone")
    if arguments.ranges and not calibrates:
        parser.error(f"--ranges is of use with {' or '.join(CALIBRATED)} alone")
    if arguments.repair != NONE and arguments.precision not in CALIBRATED:
        parser.error(f"--repair is of use with {' or '.join(CALIBRATED)} alone")
    if arguments.float_layers and arguments.precision.startswith(("fp", "bf")):
        parser.error(f"--float-layers is of no use with {arguments.precision}: all layers are in float")
    return run_command(lambda: _deploy(target, arguments))


def _quantization(arguments: argparse.Namespace) -> Quantization:
    ranges, percentile = parse_ranges(arguments.ranges) if arguments.ranges else (None, DEFAULT_PERCENTILE)
    layers = None if arguments.float_layers is None else parse_layers(arguments.float_layers)
    return Quantization(ranges, percentile, layers)


def _is_data_set(source: Path) -> bool:
    """Whether there may be something to verify on besides something to calibrate on."""
    return source.suffix in YAML_SUFFIXES or (source.is_dir() and is_image_folder(source))


def check_calibration_source(source: Path | None) -> None:
    """Refuse a --calibration that is not there.

    Raises:
        CalibrationError: no such file or folder.
    """
    if source is not None and not source.exists():
        raise CalibrationError(f"no --calibration {source}: check the path of the data.yaml or the folder of images")


def _deploy(target: Target, arguments: argparse.Namespace) -> int:
    check_calibration_source(arguments.calibration)
    quantization = _quantization(arguments)
    repair = parse_methods(arguments.repair)
    student = find_student(arguments.student)
    default = Path("runs/deploy") / f"{student.name}-{target.engine}-{arguments.precision}"
    build: Callable[..., Bundle] = build_bundle
    if arguments.precision == AUTO:  # it measures, so it is loaded only where it is asked for
        build = import_module("deploy.precision_auto").build_auto_bundle
    bundle = build(
        target,
        student,
        arguments.out or unused_path(default),
        precision=arguments.precision,
        quantization=quantization,
        imgsz=arguments.imgsz,
        calibration=arguments.calibration,
        calibration_images=arguments.calibration_images,
        verify=not arguments.no_verify,
        max_drop_points=arguments.max_drop,
        **({"repair": repair} if repair else {}),
    )
    if arguments.json:
        fields = {"bundle": str(bundle.path), "size_bytes": bundle.size_bytes}
        sys.stdout.write(json.dumps({**fields, "manifest": json.loads(bundle.manifest.to_json())}) + "\n")
    else:
        sys.stdout.write(f"{bundle.path}\n")
    # What lies outside runs/ is not found as the newest bundle.
    given = "" if arguments.out is None else f" --bundle {shlex.quote(str(arguments.out))}"
    log(f"next: python bench/run.py{given}")
    return 0


def add_calibration_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which images INT8 is fitted to."""
    parser.add_argument(
        "--calibration",
        type=Path,
        help="data.yaml or image-folder data set, whose train split calibrates, or a folder of images "
        "(default: the student's training images)",
    )
    parser.add_argument(
        "--calibration-images",
        type=positive_whole_number,
        default=DEFAULT_CALIBRATION_IMAGES,
        metavar="N",
        help="how many of them at most, chosen evenly (default: %(default)s)",
    )


def _parser(target: Target) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m deploy.{target.engine}",
        description=f"Compile a student into a verified {target.engine} bundle.",
    )
    parser.add_argument(
        "--student",
        type=Path,
        help="student folder, run folder, or .pt checkpoint; a .pt2 is a program: open none that you do not trust "
        "(default: the newest student below runs/)",
    )
    precision = parser.add_mutually_exclusive_group()
    for name, text in (
        ("int8", "8-bit weights and activations, calibrated on training images"),
        ("fp16", "16-bit weights"),
    ):
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name, help=text)
    precision.add_argument(
        "--precision",
        choices=(*target.precisions, AUTO),
        help="the same and more; w8: 8-bit weights alone, dynamic: activations quantized as they come, w8a16: 16-bit "
        "activations, auto: the fastest here that loses no more than --max-drop (default: fp32)",
    )
    parser.set_defaults(precision="fp32")
    parser.add_argument(
        "--ranges",
        metavar="METHOD",
        help=f"how calibration fixes the ranges: {', '.join(RANGE_METHODS)}, percentile:99.9 (default: the target's)",
    )
    parser.add_argument(
        "--float-layers",
        metavar="NAME,NAME",
        help="layers or blocks that stay in float, such as model.0,model.22.cv2.0; none: none (default: the target's)",
    )
    parser.add_argument(
        "--repair",
        default=NONE,
        metavar="NAME,NAME",
        help=f"change the weights for INT8 first: some of {', '.join(METHOD_NAMES)}: minutes; python -m deploy.repair "
        "does it once for all targets (default: %(default)s)",
    )
    add_calibration_flags(parser)
    parser.add_argument(
        "--imgsz", type=positive_whole_number, help="side of the input in pixels (default: the student's)"
    )
    parser.add_argument(
        "--out", type=Path, help="bundle folder to make (default: runs/deploy/STUDENT-ENGINE-PRECISION)"
    )
    parser.add_argument("--no-verify", action="store_true", help="do not measure the bundle against the student")
    parser.add_argument(
        "--max-drop",
        type=_points,
        default=DEFAULT_MAX_DROP_POINTS,
        metavar="POINTS",
        help="refuse a bundle that loses more mAP50-95, or top-1, than this, in points (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON instead of the bundle's path")
    return parser


def _points(text: str) -> float:
    return number_within(0.0, 100.0, text)
