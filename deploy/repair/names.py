"""The names of the repair methods, for command lines: nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.errors import ExportError

# In the order in which they run: what changes the weights first, then their rounding, then what error is left.
METHOD_NAMES = ("equalise", "qat", "adaround", "bias")
MOVE_RANGES = ("equalise",)  # what makes the activations others, so that their ranges are measured again
DEFAULT_METHODS = ("qat", "bias")
NONE = "none"


def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods, each once, in the order in which they run.

    Raises:
        ExportError: an unknown name; the message lists the known ones.
    """
    unknown = [name for name in methods if name not in METHOD_NAMES]
    if unknown:
        raise ExportError(f"no weight repair by {unknown[0]!r}: give some of {', '.join(METHOD_NAMES)}, or {NONE}")
    return tuple(name for name in METHOD_NAMES if name in methods)


def parse_methods(text: str) -> tuple[str, ...]:
    """A flag's methods, such as "qat,bias"; "none" is none.

    Raises:
        ExportError: an unknown name.
    """
    return () if text == NONE else check_methods([name.strip() for name in text.split(",")])
