"""The page that a study writes: to its `--out`, which is never overwritten, or to stdout."""

from __future__ import annotations

import sys
from pathlib import Path

from bench.errors import BenchError


def refuse_existing(out: Path | None) -> None:
    """Refuse, before anything is measured, a file that is there already.

    Raises:
        BenchError: it exists.
    """
    if out is not None and out.exists():
        raise BenchError(f"{out} already exists: choose another --out or remove it")


def write_page(text: str, out: Path | None) -> None:
    """Write a page to `out`, and its path to stdout; without `out`, the page itself.

    Raises:
        OSError: the file cannot be written.
    """
    if out is None:
        sys.stdout.write(text)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{out}\n")
