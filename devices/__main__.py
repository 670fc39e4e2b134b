"""`python -m devices list | probe NAME | setup NAME`: the machines of the inventory, what one of them is and has, and
how it gets what an engine needs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from devices.engines import ENGINES
from devices.errors import DeviceError
from devices.inventory import INVENTORY_NAME, Inventory, load_inventory, open_device, toml_entry
from devices.local import LOCAL
from devices.setup import Order, set_up

_NEEDED = ("numpy", "pillow")
_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "list":
            _list(load_inventory(arguments.inventory), arguments.json)
        elif arguments.command == "probe":
            _probe(arguments.name, arguments.inventory, arguments.json)
        else:
            _setup(arguments)
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
    setup = commands.add_parser("setup", parents=[shared], help="make a venv there with what one engine needs")
    add = setup.add_argument
    add("name", metavar="NAME", help='a name from the inventory, user@host, an ssh alias, or "local"')
    add("--engine", required=True, choices=ENGINES, help="which engine's bundles it is to run")
    add("--venv", metavar="PATH", help="folder of the venv there, absolute or ~/NAME (default: ~/venv-ENGINE)")
    add("--python", metavar="PATH", help="Python there to make it with (default: the first that is 3.11 or newer)")
    add("--offline", action="store_true", help="the device has no internet: fetch what it needs here and send it")
    add("--wheels", type=Path, metavar="DIR",
        help="send the wheels in this folder; with --offline, a folder that is not there is filled first")  # fmt: skip
    return parser


def _setup(arguments: argparse.Namespace) -> None:
    name = arguments.name
    given = f"~/venv-{arguments.engine}" if arguments.venv is None else arguments.venv.rstrip("/")
    order = Order(arguments.engine, given, arguments.python is None, arguments.wheels, arguments.offline)
    device = open_device(name, arguments.inventory, arguments.python)
    try:
        ready = set_up(device, order, _log)
    finally:
        device.close()
    known = load_inventory(arguments.inventory)
    entry = known.entries.get(name)
    python = f"{given}/bin/python"
    listed = name == LOCAL or (entry is not None and entry.python in (python, ready.executable))
    fields = {"python": python} if entry is not None else {"host": name, "python": python}
    to_add = None if listed else toml_entry(name, fields)
    if arguments.json:
        _print(json.dumps({**asdict(ready), "executable": ready.executable, "inventory_lines": to_add}, indent=1))
        return
    _print(f"{'venv':<13} {ready.venv} ({'made' if ready.made else 'was there already, and is as it should be'})")
    _print(f"{'python':<13} {ready.python} ({ready.executable})")
    _print(f"{'installed':<13} {', '.join(f'{package} {version}' for package, version in ready.packages.items())}")
    _print(f"{'engine':<13} {arguments.engine} opens: {', '.join(ready.found)}")
    if to_add is not None:
        where = f"{known.source}, in place of what it says of {name}" if entry is not None else INVENTORY_NAME
        _log(f"add to {where}:" if entry is None else f"set in {where}:")
        _print(to_add)
    if name == LOCAL:
        _log(f"next: {shlex.quote(ready.executable)} bench/run.py")
    else:
        _log(f"next: python bench/run.py --device {shlex.quote(name)}")


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
        _log(f"next: python -m devices setup {shlex.quote(name)} --engine {' | '.join(ENGINES)}")
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
