"""The facts that a device reports, checked: what comes back from another machine is never taken on trust."""

from __future__ import annotations

import re
from typing import Any

from devices import probe
from devices.errors import DeviceError
from devices.programs import marked

_KINDS: dict[str, type] = {"python": str, "packages": dict}
_MAY_BE_UNKNOWN: dict[str, type] = {
    **dict.fromkeys(("executable", "abi", "architecture", "home", "model", "libc"), str),
    **dict.fromkeys(("pointer_bits", "cores", "memory_bytes", "free_bytes"), int),
}


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
    for key, kind in {**_KINDS, **_MAY_BE_UNKNOWN}.items():
        value = reported.get(key)
        if not isinstance(value, kind) and (key in _KINDS or value is not None):
            expected = "a number" if kind is int else "text" if kind is str else "a table"
            raise DeviceError(f"{name}: it reports {key} = {value!r:.60}, expected {expected}: try again")
    if not re.match(r"\d+\.\d+", reported["python"]):
        raise DeviceError(f"{name}: it reports Python {reported['python']!r:.60}, expected a version: try again")
    packages = {**dict.fromkeys(probe.PACKAGES), **reported["packages"]}
    return {**dict.fromkeys(_MAY_BE_UNKNOWN), **reported, "packages": packages}
