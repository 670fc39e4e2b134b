"""`python -m bench.audit`: the precision that engines really execute, on this machine or on a device.

    python -m bench.audit --device pi@raspberry runs/deploy/yolov8n-tflite-int8

The same as `python -m deploy.audit`, in a fresh process on the machine that `--device` names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import BenchError
from bench.remote import Site
from deploy.audit import add_arguments, exit_code, show
from deploy.bundle import Bundle
from deploy.cli import run_command
from devices import LOCAL, DeviceError, open_device


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.audit", description="Show the precision that engines really execute, here or on a device."
    )
    add_arguments(parser)
    parser.add_argument(
        "--device",
        default=LOCAL,
        metavar="NAME",
        help="a name from devices.toml, user@host or an ssh alias (default: this machine)",
    )
    parser.add_argument(
        "--inventory",
        type=Path,
        metavar="FILE",
        help="device inventory (default: ./devices.toml, then ~/.config/edge-distill/devices.toml)",
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda: _audit(arguments), BenchError, DeviceError)


def _audit(arguments: argparse.Namespace) -> int:
    bundles = [Bundle.open(path) for path in arguments.bundles]
    device = open_device(arguments.device, arguments.inventory)
    records = []
    try:
        site = Site(device)
        for bundle in bundles:
            records.append(site.audit(bundle, arguments.threads))
            show(records[-1], arguments.json)
    finally:
        device.close()
    return exit_code(records)


if __name__ == "__main__":
    sys.exit(main())
