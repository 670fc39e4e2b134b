"""Teacher outputs on disk, one file per augmented view of an image."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from distill.whole import whole_file

__all__ = ["FOLDER_FILE", "OutputStore", "free_bytes", "make_room", "stored_bytes"]

log = logging.getLogger(__name__)

FOLDER_FILE: Final = "outputs.json"
_LOCK_FILE: Final = "in-use"
_MAGIC: Final = b"EDISTL01"
_HEAD: Final = len(_MAGIC) + 4  # and the CRC-32 of what follows
_IN_A_FOLDER: Final = 1000


class OutputStore:
    """The outputs of one teacher on one data set with one augmentation, under a folder that many such share.

    The folder's name is the hash of ``key``: outputs of another teacher, other data or another augmentation are
    never read by mistake. An entry is a checksum and the raw numbers, written to a partial file and renamed.
    """

    def __init__(self, root: Path, key: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype):
        """Open or create the folder, and mark it as in use for as long as this object lives.

        Args:
            root: the folder of all stores.
            key: what the outputs depend on; of JSON's types.
            shapes: of each tensor of an entry.
            dtype: how they are stored, two bytes a number.
        """
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        self.folder = root / digest
        self._shapes, self._dtype = tuple(shapes), dtype
        self._sizes = [int(np.prod(shape)) for shape in shapes]
        self.entry_bytes = 2 * sum(self._sizes) + _HEAD
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / _LOCK_FILE).open("a")
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        described = self.folder / FOLDER_FILE
        if described.exists():
            os.utime(described)  # the last use, by which stores are forgotten
        else:
            _replace(described, json.dumps(dict(key), indent=2).encode())
        self._told_of_damage = False

    def read(self, family: int, view: int, image: int) -> list[Tensor] | None:
        """The tensors of an entry; None when it is missing or damaged."""
        path = self._path(family, view, image)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        body = memoryview(content)[_HEAD:]
        whole = len(content) == self.entry_bytes and content.startswith(_MAGIC)
        if not whole or int.from_bytes(content[len(_MAGIC) : _HEAD], "little") != zlib.crc32(body):
            if not self._told_of_damage:
                log.warning("teacher cache: %s is damaged, and is made again as every other such entry", path)
            self._told_of_damage = True
            return None
        numbers = torch.frombuffer(bytearray(body), dtype=self._dtype)
        parts = torch.split(numbers, self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def write(self, family: int, view: int, image: int, tensors: Sequence[Tensor]) -> None:
        """Store the tensors of an entry, of this store's type, whole or not at all."""
        flat = torch.cat([tensor.reshape(-1).cpu() for tensor in tensors])
        body = flat.view(torch.int16).numpy().tobytes()
        path = self._path(family, view, image)
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)

    def _path(self, family: int, view: int, image: int) -> Path:
        return self.folder / f"{family}-{view}" / str(image // _IN_A_FOLDER) / f"{image}.bin"


def stored_bytes(folder: Path) -> int:
    """Bytes of the entries below a folder; 0 where there is none."""
    total = 0
    for path in folder.rglob("*.bin"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue  # forgotten by another run meanwhile
    return total


def free_bytes(folder: Path) -> int:
    """What the disk of a folder, or of the nearest one above it that exists, can still hold."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def make_room(root: Path, kept: Sequence[Path], most: int) -> None:
    """Forget stores of other teachers, data or settings, those unused for longest first, until ``most`` is kept.

    Args:
        root: the folder of all stores.
        kept: the stores that stay.
        most: bytes that all others may take together.
    """
    others = [path.parent for path in root.glob(f"*/{FOLDER_FILE}") if path.parent not in kept]
    others.sort(key=lambda folder: (folder / FOLDER_FILE).stat().st_mtime)
    sizes = {folder: stored_bytes(folder) for folder in others}
    total = sum(sizes.values())
    for folder in others:
        if total <= most:
            return
        with (folder / _LOCK_FILE).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # another run reads it
            log.info("teacher cache: forgetting %s, %.2f GB of another run", folder.name, sizes[folder] / 1e9)
            shutil.rmtree(folder)
        total -= sizes[folder]


def _replace(path: Path, content: bytes) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(content)
