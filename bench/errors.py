"""The root exception of this folder."""

from __future__ import annotations


class BenchError(Exception):
    """A measurement or a comparison cannot be made; the message is one line that says what to do next."""
