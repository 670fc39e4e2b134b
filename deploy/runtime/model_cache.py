"""What an engine works out when it opens a model, kept on disk for the next time.

Opening takes about half as long from there (OpenVINO's compiled model, ONNX Runtime's optimised graph; LiteRT has
nothing to keep), and never gives another result: an entry is found again only by the same model, library, processor
and options, and only while its content is what was written. The folder is `$EDGE_DISTILL_CACHE`, or
`~/.cache/edge-distill`; `EDGE_DISTILL_CACHE=off`, or the engine option `model_cache`, does without. Whatever is wrong
with the folder, the model is opened as if there were none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.bundle import Bundle, sha256_file

MAX_ENTRIES = 32
MAX_BYTES = 500_000_000

_log = logging.getLogger(__name__)


class ModelCache:
    """The place of one opened model. An entry is one file, whose name holds the hash of its content."""

    def __init__(self, bundle: Bundle, suffix: str, parts: Mapping[str, Any]) -> None:
        """Find the place.

        Args:
            bundle: what is opened.
            suffix: of the file, as the library wants it, such as ".onnx".
            parts: what else the entry depends on: the library and its version, options.
        """
        self._folder = cache_folder()
        self._suffix = suffix
        files = {name: [digest, _size(bundle.path / name)] for name, digest in bundle.manifest.files.items()}
        whole = {"files": files, "model": bundle.manifest.model_file, "processor": _processor(), **parts}
        self._key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]
        self.state = "off" if self._folder is None else "unused"

    @property
    def enabled(self) -> bool:
        """Whether there is a folder to look in."""
        return self._folder is not None

    def find(self) -> Path | None:
        """A whole entry, or None; what is damaged is removed."""
        if self._folder is None:
            return None
        try:
            found = sorted(self._folder.glob(f"{self._key}-*{self._suffix}"))
            for path in found:
                if sha256_file(path) == path.stem.partition("-")[2]:
                    with contextlib.suppress(OSError):  # a folder that may only be read
                        os.utime(path)  # entries that are used stay
                    self.state = "loaded"
                    return path
                self.discard(path)
        except OSError as error:
            self.give_up(error)
        return None

    def discard(self, path: Path) -> None:
        """Remove an entry that is no good."""
        self.state = "unused"
        _log.warning("the cached model %s is damaged: it is made anew", path)
        with contextlib.suppress(OSError):
            path.unlink()

    def new_file(self) -> Path | None:
        """An unused file name beside the entries, to write one to; None where that cannot be."""
        if self._folder is None:
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(self._suffix, ".new-", self._folder)
            os.close(handle)
        except OSError as error:
            self.give_up(error)
            return None
        return Path(name)

    def keep(self, written: Path) -> Path | None:
        """Make an entry of what `new_file` named, whole or not at all; remove the oldest of too many.

        Returns:
            The entry; None where it cannot be kept.
        """
        try:
            entry = written.replace(written.with_name(f"{self._key}-{sha256_file(written)}{self._suffix}"))
            self.state = "stored"
            _prune(entry.parent)
        except OSError as error:
            self.drop(written)
            self.give_up(error)
            return None
        return entry

    def drop(self, written: Path) -> None:
        """Remove what `new_file` named."""
        with contextlib.suppress(OSError):
            written.unlink()

    def give_up(self, error: Exception) -> None:
        """Do without from now on, and say so once."""
        if self._folder is not None:
            _log.warning("the model cache %s cannot be used (%s): models open slower", self._folder, error)
        self._folder = None
        self.state = "unusable"


def cache_folder() -> Path | None:
    """Where opened models are kept; None where the environment says that none are."""
    named = os.environ.get("EDGE_DISTILL_CACHE", "")
    if named == "off":
        return None
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache" / "edge-distill"
    except RuntimeError:  # a user without a home
        return None


def _prune(folder: Path) -> None:
    """Remove the entries used least recently, beyond `MAX_ENTRIES` and `MAX_BYTES`, and what a killed writer left."""
    entries = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may be pruning too
            status = path.stat()
            entries.append((-status.st_mtime, status.st_size, path))
    total = 0
    for place, (_, size, path) in enumerate(sorted(entries)):
        total += size
        if place >= MAX_ENTRIES or (total > MAX_BYTES and place > 0):
            with contextlib.suppress(OSError):
                path.unlink()


def _processor() -> str:
    """Machine and processor features: what is compiled for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    features = [line for line in lines if line.lower().startswith(("flags", "features", "model name"))]
    return f"{platform.machine()} {' '.join(sorted(set(features)))}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
