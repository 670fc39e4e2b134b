"""Sets of files on a pipe: written at one end, whole and verified at the other.

Both ends run this file. It is sent to a device as text, for a Python there that may be old and has nothing else, so it
uses the standard library alone.

A set is one line of JSON (name, size and SHA-256 of every file) and then the bytes of the files in that order.

Sets are cached in folders that are named by their content. Of each kind the newest and whatever was used of late stay.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

MAGIC = b"edge-distill files 1\n"
_CHUNK_BYTES = 1 << 20
KEPT_SETS = 8
KEPT_S = 86400.0  # another host may be using what it looked for a while ago
_CACHED = re.compile(r"[0-9a-f]{32}(\.partial-(?P<pid>\d+)-[0-9a-f]{8})?")


class BrokenTransferError(Exception):
    """The set is not whole, or not what was announced."""


def write_files(stream: IO[bytes], files: Mapping[str, Path]) -> None:
    """Write a set of files.

    Args:
        stream: binary, writable.
        files: relative name with `/` to local path.

    Raises:
        BrokenTransferError: a file changed while it was being sent.
        OSError: a file cannot be read, or the other end is gone.
    """
    listing = [(name, path.stat().st_size, sha256(path)) for name, path in sorted(files.items())]
    stream.write(MAGIC + json.dumps(listing).encode() + b"\n")
    for name, size, _ in listing:
        with files[name].open("rb") as source:
            left = size
            while left:
                chunk = source.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise BrokenTransferError(f"{files[name]} became shorter while it was being sent")
                stream.write(chunk)
                left -= len(chunk)
    stream.flush()


def read_files(stream: IO[bytes] | _Impatient, folder: Path) -> None:
    """Read a set of files into `folder`, which appears only once every file is there, verified and on the disk.

    Args:
        stream: binary, readable; what comes before the set (a chatty login script) is skipped.
        folder: if it is there already, or appears meanwhile, the one that is there is kept.

    Raises:
        BrokenTransferError: the stream ends too early, or a file differs from its hash.
        OSError: no space, no permission.
    """
    line = stream.readline()
    while line and line != MAGIC:
        line = stream.readline()
    header = stream.readline()
    if not header.endswith(b"\n"):
        raise BrokenTransferError("the link was lost before anything arrived")
    listing = _listing(header)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    partial = _partial(folder)
    try:
        partial.mkdir()
        for name, size, expected in listing:
            _read_file(stream, partial, name, size, expected)
        _sync(partial)
        _rename_unless_there(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def prune(folder: Path) -> None:
    """Remove the sets beside `folder` that were not used for a day, but for the newest `KEPT_SETS`.

    Only folders whose name is 32 hexadecimal digits are ever removed, as no other is known to be a cache, and what is
    left of copies that died. A clock that jumps changes the order in which they go, never that `folder` stays.

    Args:
        folder: the set that has just been pushed or used.
    """
    now = time.time()
    used: list[tuple[float, Path]] = []
    for path in folder.parent.iterdir():
        named = _CACHED.fullmatch(path.name)
        if named is None or path == folder or path.is_symlink():
            continue
        with suppress(FileNotFoundError):  # another host was faster
            used_at = path.stat().st_mtime
            if named["pid"] is None:
                used.append((used_at, path))
            elif not _is_alive(named["pid"]) or now - used_at > KEPT_S:
                shutil.rmtree(path, ignore_errors=True)
    for used_at, path in sorted(used, reverse=True)[KEPT_SETS - 1 :]:
        if now - used_at > KEPT_S:
            with suppress(OSError):
                # Renamed first: what is left of a removal that is cut short must not pass for a whole set.
                going = path.rename(_partial(path))
                shutil.rmtree(going, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def files_below(folder: Path) -> dict[str, Path]:
    """Relative name (with `/`) to path of every file below `folder`."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def _partial(folder: Path) -> Path:
    """A name for what is not whole; the process id lets a later run tell an abandoned folder from one in the making."""
    return folder.with_name(f"{folder.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _listing(header: bytes) -> list[tuple[str, int, str]]:
    """Name, size and SHA-256 of every file that is announced."""
    try:
        listing = [(name, size, expected) for name, size, expected in json.loads(header.decode())]
    except (ValueError, TypeError, RecursionError) as error:  # not UTF-8, not JSON, or not rows of three
        raise BrokenTransferError(f"the list of files is malformed ({error})") from error
    for name, size, expected in listing:
        # bool is an int, and a NUL cannot be part of a file's name.
        texts = isinstance(name, str) and isinstance(expected, str) and "\0" not in name
        if not texts or type(size) is not int or size < 0:
            raise BrokenTransferError(
                f"the list of files has {[name, size, expected]!r:.80}, expected name, size, hash"
            )
    return listing


def _read_file(stream: IO[bytes] | _Impatient, folder: Path, name: str, size: int, expected: str) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise BrokenTransferError(f"{name!r} would lie outside its folder")
    path = folder.joinpath(*relative.parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("xb") as target:
        left = size
        while left:
            chunk = stream.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise BrokenTransferError(f"the link was lost in the middle of {name!r}")
            digest.update(chunk)
            target.write(chunk)
            left -= len(chunk)
        # Without this a power cut could leave the final name with empty files behind it.
        target.flush()
        os.fsync(target.fileno())
    if digest.hexdigest() != expected:
        raise BrokenTransferError(f"{name!r} arrived with another SHA-256 than it was sent with")


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename_unless_there(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _remove_abandoned(folder: Path) -> None:
    prefix = f"{folder.name}.partial-"
    for path in folder.parent.iterdir():
        if path.name.startswith(prefix) and not _is_alive(path.name[len(prefix) :].split("-")[0]):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # another user's
        return True
    return True


class _Impatient:
    """A stream whose reads give up after a while: one that a cut network has left open would never end."""

    def __init__(self, stream: IO[bytes], patience_s: int) -> None:
        self._stream, self._patience_s = stream, patience_s
        signal.signal(signal.SIGALRM, self._give_up)

    def read(self, size: int) -> bytes:
        signal.alarm(self._patience_s)
        try:
            return self._stream.read(size)
        finally:
            signal.alarm(0)

    def readline(self) -> bytes:
        signal.alarm(self._patience_s)
        try:
            return self._stream.readline()
        finally:
            signal.alarm(0)

    def _give_up(self, signal_number: int, frame: object) -> None:
        raise BrokenTransferError(f"nothing came for {self._patience_s} s: the host is gone")


def main() -> None:
    """Serve one request, a line of JSON on stdin: receive a set into a folder, or send one."""
    request = json.loads(sys.stdin.buffer.readline().decode())
    folder = Path(request["folder"])
    try:
        if request["do"] == "receive":
            read_files(_Impatient(sys.stdin.buffer, request["silence_s"]), folder)
            prune(folder)
        elif folder.is_dir():
            write_files(sys.stdout.buffer, files_below(folder))
        else:
            raise BrokenTransferError(f"there is no folder {folder}")
    except (BrokenTransferError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
