"""Files and folders that are whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole_file", "whole_folder", "write_whole"]


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A sibling folder to fill, renamed to ``folder`` when the block ends well and removed otherwise."""
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A sibling file to write, which replaces ``path`` when the block ends well and is removed otherwise."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text in UTF-8, replacing what is there."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
