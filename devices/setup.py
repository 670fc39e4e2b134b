"""A device gets a virtual environment with exactly what one engine needs, from an index or from wheels sent to it."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices import probe, venv, wheels
from devices.device import Device
from devices.engines import Recipe, recipes
from devices.errors import DeviceError
from devices.facts import reported_facts
from devices.programs import marked, run_program

_QUICK_S = 120.0
_SILENCE_S = 1800.0  # a big wheel over a slow line, or unpacked onto a slow card, without a word of pip
_HOST_SILENCE_S = 60.0  # six heartbeats missed: the host or the network has gone
_SPARE = 1.3  # compiled files, and what pip unpacks before it moves it
_PIP_BYTES = 40_000_000
_OTHER_PYTHONS = ("python3", "python3.13", "python3.12", "python3.11")

Log = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes:
        engine: one of `devices.engines.ENGINES`.
        venv: folder there, absolute or `~/…`.
        other_pythons: look for a Python that is new enough beyond the one that `Device.python` names.
        wheels: folder of wheels here to install from, filled first if it is not there and `offline` is set.
        offline: the device has no package index: this machine fetches what it needs and sends it.
    """

    engine: str
    venv: str
    other_pythons: bool = True
    wheels: Path | None = None
    offline: bool = False


@dataclass(frozen=True)
class Ready:
    """A venv that runs an engine.

    Attributes:
        venv: absolute path there.
        made: False if it was there already.
        python: version of its Python.
        packages: distribution to version: the engine, numpy, Pillow.
        found: what the engine said it offers, e.g. execution providers.
    """

    venv: str
    made: bool
    python: str
    packages: Mapping[str, str]
    found: Sequence[str]

    @property
    def executable(self) -> str:
        """Path of its Python."""
        return f"{self.venv}/bin/python"


def set_up(device: Device, order: Order, log: Log) -> Ready:
    """Make a venv on a device, or see that the one that is there does what it should.

    Raises:
        DeviceError: the device cannot be reached, is of a kind that no engine is published for, lacks space or
            Python's venv module, or an installation failed. Nothing half-made is left there.
    """
    python, facts = _usable_python(device, order.other_pythons)
    try:
        target = wheels.target(facts)
        choices = recipes(order.engine, target.machine)
    except DeviceError as error:
        raise DeviceError(f"{device.name}: {error}") from error
    request = {"do": "inspect", "venv": order.venv, "engine": order.engine, "workdir": device.workdir}
    found = _ask(device, python, request, None)
    if found["exists"]:
        if found["opened"] is None:
            raise DeviceError(
                f"{device.name}: {found['venv']} is there already and does not run {order.engine} "
                f"({found['why']}): remove it, or choose another --venv"
            )
        return Ready(found["venv"], False, **found["opened"])
    if not found["can_make"]:
        raise DeviceError(
            f"{device.name}: {facts['executable']} cannot make virtual environments: run there: "
            "sudo apt install python3-venv"
        )
    return _made(device, python, order, target, choices, found, log)


def _made(
    device: Device,
    python: Sequence[str],
    order: Order,
    target: wheels.Target,
    choices: Sequence[Recipe],
    found: Mapping[str, Any],
    log: Log,
) -> Ready:
    there: str | None = None
    with ExitStack() as stack:
        if order.offline or order.wheels is not None:
            folder = order.wheels or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "wheels"
            if order.offline and not folder.exists():
                wheels.download(target, choices, folder, log)
            recipe, files = wheels.fitting(folder, target, choices)
            choices = (recipe,)
            sent_bytes = sum(path.stat().st_size for path in files.values())
            needed_bytes = int(_PIP_BYTES + wheels.unpacked_bytes(files) * _SPARE)
            _check_space(device, found, needed_bytes + (sent_bytes if found["shares_space"] else 0))
            if device.shares_files:
                there = str(folder.absolute())
            else:
                log(f"sending {len(files)} wheels, {sent_bytes / 1e6:.1f} MB")
                there = device.push(files, f"wheels/{uuid.uuid4().hex}")  # its own, so that nobody else removes it
        else:
            _check_space(device, found, int(choices[0].unpacked_bytes * _SPARE))
        request = {
            "do": "make",
            "venv": found["venv"],
            "engine": order.engine,
            "choices": [list(recipe.requirements) for recipe in choices],
            "wheels": there,
            "remove": None if device.shares_files else there,
            "silence_s": _HOST_SILENCE_S,
        }
        return Ready(found["venv"], True, **_ask(device, python, request, log))


def _usable_python(device: Device, look_further: bool) -> tuple[Sequence[str], Mapping[str, Any]]:
    """The first Python there that is new enough, and the facts that it reports."""
    names = [*device.python, *(_OTHER_PYTHONS if look_further and not device.shares_files else ())]
    met = []
    for name in dict.fromkeys(names):
        done = run_program(device, [name], probe, timeout_s=_QUICK_S)
        facts = reported_facts(done.stdout, device.name)
        if facts is None:
            met.append(f"{name} does not run")
        elif tuple(int(part) for part in facts["python"].split(".")[:2]) < wheels.OLDEST_PYTHON:
            met.append(f"{name} is {facts['python']}")
        else:
            return [name], facts
    raise DeviceError(
        f"{device.name}: no Python 3.11 or newer there ({', '.join(met)}): Raspberry Pi OS 12 (bookworm) and Debian 12 "
        "have one; install it, or name one with --python"
    )


def _check_space(device: Device, found: Mapping[str, Any], needed_bytes: int) -> None:
    if found["free_bytes"] < needed_bytes:
        raise DeviceError(
            f"{device.name}: {found['free_bytes'] / 1e6:.0f} MB are free for {found['venv']}, about "
            f"{needed_bytes / 1e6:.0f} MB are needed: make room there, or choose another --venv"
        )


def _ask(device: Device, python: Sequence[str], request: Mapping[str, Any], log: Log | None) -> dict[str, Any]:
    def on_stderr(line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "progress" and log is not None:
            log(rest)

    done = run_program(device, python, venv, request, timeout_s=_SILENCE_S, on_stderr=on_stderr)
    answer = marked(done.stdout, venv.MARK, device.name) if done.returncode == 0 else None
    if answer is None:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("progress ")]
        why = said[-1].strip().removeprefix("error: ") if said else f"it ended with exit code {done.returncode}"
        raise DeviceError(f"{device.name}: {why}")
    return answer
