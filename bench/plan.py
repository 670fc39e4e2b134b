"""What a run is to measure: written beside its results, so that a run that broke off can be taken up again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.opening import Opened
from bench.remote import code_digest
from deploy.cli import file_name
from devices import load_inventory

RUN_NAME = "run.json"
_SCHEMA = 1
_OF_A_DEVICE = ("host", "python", "threads", "meter")  # what decides where and how it measures


@dataclass(frozen=True)
class PlannedBundle:
    """One bundle of a plan.

    Attributes:
        path: its folder, absolute.
        sha256: of its manifest; None if it could not be used when the run began.
        data: what it is measured on, absolute; None for what its student was trained with.
        data_sha256: of those images and their labels; None if the bundle could not be used.
    """

    path: str
    sha256: str | None
    data: str | None
    data_sha256: str | None


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        command: as it was typed.
        settings: values of the flags that decide how is measured, by name.
        inventory: the inventory that was read, absolute; None if there was none.
        bundles: in the order given.
        devices: by name, what the inventory says of each (`host`, `python`, `threads`, `meter`).
        code_sha256: of all code that measures on a device.
    """

    command: str
    settings: Mapping[str, Any]
    inventory: str | None
    bundles: tuple[PlannedBundle, ...]
    devices: Mapping[str, Mapping[str, Any]]
    code_sha256: str

    def to_json(self) -> str:
        """The text of `run.json`."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1) + "\n"

    def folder_names(self) -> dict[tuple[str, int], str]:
        """Device and place of the bundle to the name of the folder for their result; no two alike."""
        names: dict[tuple[str, int], str] = {}
        for device in self.devices:
            for place, bundle in enumerate(self.bundles):
                name = wanted = f"{file_name(Path(bundle.path).name)}@{file_name(device)}"
                number = 1
                while name in names.values():
                    number += 1
                    name = f"{wanted}-{number}"
                names[device, place] = name
        return names


def read_plan(folder: Path) -> Plan:
    """The plan of the run whose results are in `folder`.

    Raises:
        BenchError: there is none, or it was not written by this version.
    """
    file = folder / RUN_NAME
    if not file.is_file():
        raise BenchError(f"no {RUN_NAME} in {folder}: nothing to resume there, start the run again")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if fields.pop("schema") != _SCHEMA:
            raise ValueError(f"expected schema {_SCHEMA}")
        plan = Plan(**{**fields, "bundles": tuple(PlannedBundle(**bundle) for bundle in fields["bundles"])})
        kinds = (plan.settings, Mapping), (plan.devices, Mapping), (plan.command, str)
        if not all(isinstance(value, kind) for value, kind in kinds) or not plan.bundles or not plan.devices:
            raise ValueError("expected settings, devices and bundles")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{file} is not what a run wrote ({error}): start the run again") from error
    return plan


def device_records(names: Sequence[str], inventory: Path | None) -> dict[str, dict[str, Any]]:
    """What the inventory says of each device, as far as it decides the figures; nothing of one that is not listed.

    Raises:
        InventoryError: the inventory is malformed.
    """
    entries = load_inventory(inventory).entries
    return {
        name: {field: getattr(entries[name], field) for field in _OF_A_DEVICE} if name in entries else {}
        for name in names
    }


def planned(path: Path, opened: Opened | None, data: Path | None) -> PlannedBundle:
    """A bundle and its images as a run begins with them; `opened` is None if they cannot be used."""
    if opened is None:
        return PlannedBundle(str(path.absolute()), None, None if data is None else str(data.absolute()), None)
    return PlannedBundle(str(path.absolute()), opened.bundle.sha256, str(opened.data.absolute()), opened.images.sha256)


def check_unchanged(was: PlannedBundle, opened: Opened | None, measured: bool) -> None:
    """Refuse to go on where a bundle or its images are no longer what the run began with.

    Args:
        was: the bundle in the plan.
        opened: as they are now; None if they cannot be used.
        measured: whether there are results of it already, with which new ones would not agree.

    Raises:
        BenchError: something changed.
    """
    if opened is None and not measured:
        return
    now = (None, None) if opened is None else (opened.bundle.sha256, opened.images.sha256)
    for what, before, current in ((was.path, was.sha256, now[0]), (was.data, was.data_sha256, now[1])):
        if before is not None and before != current:
            raise BenchError(f"{what} changed since the run began: start a new run, its results would not agree")


def check_devices_unchanged(plan: Plan, inventory: Path | None) -> None:
    """Refuse to go on where the inventory, or the code that measures, is no longer what the run began with.

    Raises:
        BenchError: something changed.
        InventoryError: the inventory is malformed.
    """
    for name, now in device_records(list(plan.devices), inventory).items():
        was = plan.devices[name]
        for field in _OF_A_DEVICE:
            if was.get(field) != now.get(field):
                raise BenchError(
                    f"the inventory has {field} = {now.get(field)!r} for {name}, {was.get(field)!r} when the run "
                    "began: set it back, or start a new run"
                )
    if plan.code_sha256 != code_digest():
        raise BenchError("the code that measures changed since the run began: start a new run")
