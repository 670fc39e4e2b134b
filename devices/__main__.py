"""`python -m devices list | probe NAME`: the machines of the inventory, and what one of them is and has."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from devices.errors import DeviceError
from devices.inventory import INVENTORY_NAME, Inventory, load_inventory, open_device

_NEEDED = ("numpy", "pillow")
_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "list":
            _list(load_inventory(arguments.inventory), arguments.json)
        else:
            _probe(arguments.name, arguments.inventory, arguments.json)
    except (DeviceError, OSError) as error:
        _log(f"error: {' '.join(str(error).split())}")
        return 1
    except KeyboardInterrupt:
        _log("interrupted: nothing was left running")
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m devices", description=__doc__)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--inventory",
        type=Path,
        metavar="FILE",
        help=f"inventory to use (default: ./{INVENTORY_NAME}, then ~/.config/edge-distill/{INVENTORY_NAME})",
    )
    shared.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", parents=[shared], help="show the machines of the inventory; connects to none")
    probe = commands.add_parser("probe", parents=[shared], help="connect to one machine and show what it has")
    probe.add_argument("name", metavar="NAME", help='a name from the inventory, user@host, an ssh alias, or "local"')
    return parser


def _list(inventory: Inventory, as_json: bool) -> None:
    if as_json:
        _print(json.dumps([asdict(entry) for entry in inventory.entries.values()], indent=1, default=str))
        return
    if not inventory.entries:
        _log(f'no machine is listed: write a {INVENTORY_NAME} with [device.NAME] and host = "user@host"')
        return
    width = max(len(name) for name in inventory.entries)
    for name, entry in inventory.entries.items():
        threads = "all cores" if entry.threads is None else f"{entry.threads} threads"
        _print(f"{name:<{width}}  {entry.host}  {entry.python}  {threads}  {' '.join(entry.tags)}".rstrip())
    _log(f"next: python -m devices probe {next(iter(inventory.entries))}")


def _probe(name: str, inventory: Path | None, as_json: bool) -> None:
    device = open_device(name, inventory)
    try:
        facts = device.facts()
    finally:
        device.close()
    if as_json:
        _print(json.dumps(facts, indent=1))
        return
    for key, value in _readable(facts).items():
        _print(f"{key:<13} {value}")
    missing = [package for package in _NEEDED if facts["packages"][package] is None]
    if missing:
        _log(f"next, on {name}: python3 -m venv ~/venv && ~/venv/bin/pip install {' '.join(missing)} and one engine")
    else:
        _log(f"next: python bench/run.py --device {name}")


def _readable(facts: Mapping[str, Any]) -> dict[str, str]:
    packages = [f"{name} {version}" for name, version in facts["packages"].items() if version is not None]
    absent = [name for name, version in facts["packages"].items() if version is None]
    return {
        "model": facts["model"] or "unknown",
        "processor": f"{facts['architecture']}, {facts['pointer_bits']}-bit Python, {facts['cores']} cores",
        "memory": _gigabytes(facts["memory_bytes"]),
        "free space": f"{_gigabytes(facts['free_bytes'])} in {facts['home']}",
        "python": f"{facts['python']} ({facts['executable']}), {facts['libc'] or 'libc unknown'}",
        "installed": ", ".join(packages) or "none of what a bench needs",
        "not installed": ", ".join(absent) or "nothing",
    }


def _gigabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.1f} GB"


def _print(text: str) -> None:
    print(text)  # noqa: T201


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
