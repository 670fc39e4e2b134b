"""`devices.toml`: the machines a user measures on, by name.

[device.pi5]
host = "pi@raspberrypi.local"     # whatever `ssh` takes: user@host, an alias, ssh://user@host:port
python = "~/venv/bin/python"      # default python3
threads = 4                       # default: all cores
tags = ["kitchen"]
workdir = "~/.cache/edge-distill"
ssh_config = "lab-ssh-config"     # in place of ~/.ssh/config; relative to this file
meter = "/run/usb-meter"          # file there that shows energy or power, see docs/benchmarking.md
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from devices.device import Device
from devices.errors import InventoryError
from devices.local import LOCAL, LocalDevice
from devices.ssh import DEFAULT_PYTHON, DEFAULT_WORKDIR, SshDevice

INVENTORY_NAME = "devices.toml"
_FIELDS: dict[str, type] = {
    "host": str,
    "python": str,
    "threads": int,
    "tags": list,
    "workdir": str,
    "ssh_config": str,
    "meter": str,
}


@dataclass(frozen=True)
class Entry:
    """One machine of the inventory; see the head of this file for the fields."""

    name: str
    host: str
    python: str = DEFAULT_PYTHON
    threads: int | None = None
    tags: tuple[str, ...] = ()
    workdir: str = DEFAULT_WORKDIR
    ssh_config: Path | None = None
    meter: str | None = None

    def device(self) -> Device:
        """The machine, not connected yet."""
        return SshDevice(
            self.name,
            self.host,
            python=self.python,
            workdir=self.workdir,
            threads=self.threads,
            ssh_config=self.ssh_config,
            meter=self.meter,
        )


@dataclass(frozen=True)
class Inventory:
    """The machines of one file, by name; `source` is None where there is no file."""

    entries: Mapping[str, Entry]
    source: Path | None = None


def open_device(name: str, inventory: Path | None = None, python: str | None = None) -> Device:
    """The machine a user means.

    Args:
        name: "local", a name from the inventory, or anything `ssh` takes.
        inventory: the file to look in; by default `devices.toml` here, then in ~/.config/edge-distill.
        python: the Python to use there, in place of the inventory's.

    Raises:
        InventoryError: the file is malformed.
        DeviceError: `name` cannot be a destination.
    """
    known = load_inventory(inventory)
    if name in known.entries:
        entry = known.entries[name]
        return replace(entry, python=python or entry.python).device()
    if name == LOCAL:
        return LocalDevice(python=python)
    listed = ", ".join(known.entries) or "no device"
    where = known.source or f"{INVENTORY_NAME} (there is none)"
    if_unknown = f"{where} lists {listed}; user@host and ssh aliases work too"
    return SshDevice(name, name, python=python or DEFAULT_PYTHON, if_unknown=if_unknown)


def chosen_names(devices: str | None, tag: str | None, inventory: Path | None = None) -> list[str]:
    """The machines that are asked for, each once, those named before those with the tag.

    Args:
        devices: a name as `open_device` takes it, or several with commas between them.
        tag: a word that entries of the inventory have among their `tags`.
        inventory: see `open_device`.

    Returns:
        Names for `open_device`; "local" alone where nothing is asked for.

    Raises:
        InventoryError: the file is malformed, a name is empty, or no entry has the tag.
    """
    if devices is None and tag is None:
        return [LOCAL]
    known = load_inventory(inventory)
    names = [] if devices is None else [devices] if devices in known.entries else devices.split(",")
    if any(not name.strip() for name in names):
        raise InventoryError(f"--device {devices!r} has an empty name: give names with one comma between them")
    tagged = [name for name, entry in known.entries.items() if tag is not None and tag in entry.tags]
    if tag is not None and not tagged:
        tags = ", ".join(sorted({tag for entry in known.entries.values() for tag in entry.tags})) or "no tag"
        where = known.source or f"{INVENTORY_NAME} (there is none)"
        raise InventoryError(f"no device has the tag {tag!r}: {where} lists {tags}")
    return list(dict.fromkeys([*(name.strip() for name in names), *tagged]))


def toml_entry(name: str, fields: Mapping[str, str]) -> str:
    """The lines of an inventory that say so much of a machine; any text is quoted as TOML wants it."""
    key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml_text(name)
    return "\n".join([f"[device.{key}]", *(f"{field} = {_toml_text(value)}" for field, value in fields.items())])


def _toml_text(text: str) -> str:
    # A basic string of TOML is one of JSON, but that DEL is escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def load_inventory(path: Path | None = None) -> Inventory:
    """Read an inventory, see `open_device` for where; none at all is an empty one.

    Raises:
        InventoryError: `path` does not exist, is not TOML, or has an unknown or mistyped field.
    """
    if path is None:
        places = (Path(INVENTORY_NAME), Path.home() / ".config" / "edge-distill" / INVENTORY_NAME)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            return Inventory({})
    elif not path.is_file():
        raise InventoryError(f"no inventory {path}: check --inventory")
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InventoryError(f"{path} is not valid TOML: {error}") from error
    tables = fields.get("device", {})
    if set(fields) - {"device"} or not isinstance(tables, dict):
        raise InventoryError(f"{path} has {', '.join(fields)} at the top, expected only tables like [device.pi5]")
    return Inventory({name: _entry(name, table, path) for name, table in tables.items()}, path)


def _entry(name: str, table: Any, source: Path) -> Entry:
    where = f"{source}: device {name!r}"
    if not isinstance(table, dict):
        raise InventoryError(f"{where} is {table!r}, expected a table: [device.{name}]")
    for key, value in table.items():
        if key not in _FIELDS:
            raise InventoryError(f"{where} has {key!r}, known fields are {', '.join(_FIELDS)}")
        if not isinstance(value, _FIELDS[key]) or isinstance(value, bool):
            raise InventoryError(f"{where} has {key} = {value!r}, expected {_FIELDS[key].__name__}")
    if not table.get("host"):
        raise InventoryError(f'{where} has no host: add host = "user@host"')
    for key in ("python", "workdir", "ssh_config", "meter"):
        if not table.get(key, "any").strip():
            raise InventoryError(f"{where} has {key} = {table[key]!r}, expected a path: leave it out for the default")
    for key in ("workdir", "meter"):
        if not table.get(key, "/").startswith(("/", "~/")):
            raise InventoryError(f"{where} has {key} = {table[key]!r}, expected ~/NAME or an absolute path")
    if table.get("threads", 1) < 1:
        raise InventoryError(f"{where} has threads = {table['threads']}, expected at least 1")
    if not all(isinstance(tag, str) for tag in table.get("tags", [])):
        raise InventoryError(f"{where} has tags = {table['tags']!r}, expected a list of words")
    fields = dict(table, tags=tuple(table.get("tags", ())))
    if "ssh_config" in table:
        fields["ssh_config"] = source.parent.absolute() / Path(table["ssh_config"]).expanduser()
    return Entry(name=name, **fields)
