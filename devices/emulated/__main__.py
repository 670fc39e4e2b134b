"""`python -m devices.emulated build | up | down | status`: an emulated Raspberry Pi to try and to test a bench on.

It is real arm64 and real SSH; how long something takes there says nothing about a Pi, and results are marked so.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from devices.emulated.boards import BOARDS, SUITES
from devices.emulated.image import build_image, find_image
from devices.emulated.machine import Machine, boot, machines, shut_down
from devices.emulated.tools import EmulationError, default_cache
from devices.errors import DeviceError

_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    cache = arguments.cache or default_cache()
    commands = {"build": _build, "up": _up, "down": _down, "status": _status}
    try:
        commands[arguments.command](arguments, cache.absolute())
    except (DeviceError, OSError) as error:
        _log(f"error: {' '.join(str(error).split())}")
        return 1
    except KeyboardInterrupt:
        _log("interrupted: nothing half-made was left")
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m devices.emulated", description=(__doc__ or "").splitlines()[0])
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--cache", type=Path, metavar="DIR",
        help=f"folder of images and running machines (default: {default_cache()})")  # fmt: skip
    shared.add_argument("--json", action="store_true", help="print JSON")
    suited = argparse.ArgumentParser(add_help=False)
    suited.add_argument("--suite", choices=SUITES, default=next(iter(SUITES)),
        help="release of Debian (default: %(default)s)")  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("build", parents=[shared, suited], help="build the image, unless it is there")
    up = commands.add_parser("up", parents=[shared, suited], help="boot the image")
    up.add_argument("name", nargs="?", default="pi", type=_name, metavar="NAME",
        help="what the inventory is to call it (default: %(default)s)")  # fmt: skip
    up.add_argument("--board", choices=BOARDS, default="pi5", help="which board it looks like (default: %(default)s)")
    up.add_argument("--cores", type=int, choices=range(1, 9), default=4, metavar="N",
        help="its processors, 1 to 8 (default: %(default)s)")  # fmt: skip
    up.add_argument("--icount", action="store_true",
        help="count instructions as its time, the same in every run; one core, slower")  # fmt: skip
    up.add_argument("--timeout", type=float, default=180.0, metavar="S",
        help="how long it may take to answer (default: %(default)g)")  # fmt: skip
    down = commands.add_parser("down", parents=[shared], help="end one machine, or all")
    down.add_argument("name", nargs="?", metavar="NAME", help="which (default: all that run)")
    commands.add_parser("status", parents=[shared], help="show what is built and what runs")
    return parser


def _build(arguments: argparse.Namespace, cache: Path) -> None:
    began = time.monotonic()
    there = find_image(cache, arguments.suite) is not None
    image = build_image(cache, arguments.suite, _log)
    if arguments.json:
        _print(json.dumps({"image": str(image.folder), "built": not there}))
    else:
        _print(f"{image.folder} ({'was there already' if there else f'built in {time.monotonic() - began:.0f} s'})")
    _log("next: python -m devices.emulated up")


def _up(arguments: argparse.Namespace, cache: Path) -> None:
    image = find_image(cache, arguments.suite)
    if image is None:
        raise EmulationError(f"no image of {arguments.suite} in {cache}: python -m devices.emulated build")
    began = time.monotonic()
    machine = boot(
        cache,
        image,
        arguments.name,
        arguments.board,
        arguments.cores,
        icount=arguments.icount,
        timeout_s=arguments.timeout,
    )
    _log(f"{machine.name} answers after {time.monotonic() - began:.1f} s; add to devices.toml, or use --inventory:")
    _print(json.dumps(_facts(machine), indent=1) if arguments.json else machine.entry)
    _log(f"next: python bench/run.py --device {machine.name} --inventory {shlex.quote(str(machine.inventory))}")


def _down(arguments: argparse.Namespace, cache: Path) -> None:
    running = machines(cache)
    chosen = [one for one in running if arguments.name in (None, one.name)]
    if arguments.name is not None and not chosen:
        known = ", ".join(one.name for one in running) or "nothing"
        raise EmulationError(f"{arguments.name} does not run; {known} does")
    for machine in chosen:
        shut_down(machine)
    ended = [one.name for one in chosen]
    _print(json.dumps({"ended": ended}) if arguments.json else f"ended: {', '.join(ended) or 'nothing ran'}")


def _status(arguments: argparse.Namespace, cache: Path) -> None:
    images = {suite: found for suite in SUITES if (found := find_image(cache, suite)) is not None}
    running = machines(cache)
    if arguments.json:
        built = {suite: str(image.folder) for suite, image in images.items()}
        _print(json.dumps({"images": built, "running": [_facts(machine) for machine in running]}, indent=1))
        return
    for suite, image in images.items():
        _print(f"image    {suite}  {image.folder}")
    for machine in running:
        kind = "instructions counted" if machine.icount else f"{machine.cores} cores"
        _print(f"running  {machine.name}  {machine.board}, {kind}  127.0.0.1:{machine.port}  {machine.inventory}")
    if not images:
        _log("no image is built: python -m devices.emulated build")
    elif not running:
        _log("nothing runs: python -m devices.emulated up")


def _facts(machine: Machine) -> dict[str, object]:
    return {
        "name": machine.name,
        "board": machine.board,
        "cores": machine.cores,
        "icount": machine.icount,
        "port": machine.port,
        "pid": machine.pid,
        "inventory": str(machine.inventory),
        "ssh_config": str(machine.ssh_config),
    }


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", text) or text == "local":
        raise argparse.ArgumentTypeError(f"{text!r}: expected letters, digits, _ and - (and not local)")
    return text


def _print(text: str) -> None:
    print(text)  # noqa: T201


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
