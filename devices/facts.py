"""The facts that a device reports, checked: what comes back from another machine is never taken on trust."""

from __future__ import annotations

import re
from typing import Any

from devices import probe
from devices.errors import DeviceError
from devices.programs import marked

_KINDS: dict[str, type] = {
    "python": str,
    "executable": str,
    "abi": str,
    "architecture": str,
    "home": str,
    "pointer_bits": int,
    "packages": dict,
}
_MAY_BE_UNKNOWN = ("model", "libc", "cores", "memory_bytes", "free_bytes")


def reported_facts(output: str, name: str) -> dict[str, Any] | None:
    """What `devices.probe` wrote on a device.

    Args:
        output: all that its process wrote.
        name: the device's, for errors.

    Returns:
        See `devices.probe.facts`; None if it wrote nothing of its own, so never ran.

    Raises:
        DeviceError: what it wrote is garbled, or a fact is missing or of another kind than it should be.
    """
    reported = marked(output, probe.MARK, name)
    if reported is None:
        return None
    for key, kind in _KINDS.items():
        if not isinstance(reported.get(key), kind):
            met = f"{key} = {reported.get(key)!r:.60}"
            raise DeviceError(f"{name}: it reports {met}, expected {kind.__name__}: try again")
    if not re.match(r"\d+\.\d+", reported["python"]):
        raise DeviceError(f"{name}: it reports Python {reported['python']!r:.60}, expected a version: try again")
    packages = {**dict.fromkeys(probe.PACKAGES), **reported["packages"]}
    return {**dict.fromkeys(_MAY_BE_UNKNOWN), **reported, "packages": packages}
