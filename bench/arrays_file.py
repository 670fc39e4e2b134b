"""`.npz` files of what was found in each image: written whole or not at all, read without trusting them."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError

# What numpy raises for an archive that is damaged, of another kind, or would have to be unpickled.
_UNREADABLE = (TypeError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def named_arrays(images: Sequence[str | Path], class_names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays `image_paths`, absolute, and `class_names`, both unicode."""
    return {
        "image_paths": np.array([os.path.abspath(image) for image in images], np.str_),  # noqa: PTH100 (keeps links)
        "class_names": np.array(list(class_names), np.str_),
    }


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays, replacing the file if it exists; a failure leaves no file.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_arrays(path: Path, what: str, data: str, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read arrays that `write_arrays` wrote.

    Args:
        path: the file.
        what: it holds, in the plural, for messages.
        data: the `--data` that the bench writes such a file with, for messages.
        names: the arrays to read; None for all.

    Raises:
        BenchError: no such file, not an npz archive, or an array missing or malformed.
    """
    if not path.is_file():
        raise BenchError(f"no {what} at {path}: run python bench/run.py with {data} --data")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in (archive.files if names is None else names)}
    except _UNREADABLE as error:
        raise BenchError(f"{path} is not a {what} file ({error}): run the bench again") from error
