"""The folder of a run: it appears with the first finished result, and belongs to one process at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bench.errors import BenchError
from bench.plan import RUN_NAME, Plan, read_plan
from bench.records import RESULT_NAME
from deploy.cli import unused_path, whole_folder


class RunFolder:
    """Where the results of a run go; any thread may keep one there."""

    def __init__(self, wanted: Path, plan: Plan) -> None:
        """Nothing is written yet.

        Args:
            wanted: the folder to make; if another run makes it meanwhile, this one adds a number.
            plan: what the folder says of its run.
        """
        self.path = wanted
        self.plan = plan
        self._claimed: int | None = None  # a file descriptor that holds the lock
        self._made = False  # here and now
        self._lock = threading.Lock()

    @staticmethod
    def reopened(path: Path) -> RunFolder:
        """The folder of a run that is to be taken up again; what a killed process left half-written goes.

        Raises:
            BenchError: it is no run's folder, or a run is still at work there.
        """
        folder = RunFolder(path, read_plan(path))
        folder._claimed = _locked(path)
        for left in path.glob(".*.partial-*"):
            shutil.rmtree(left, ignore_errors=True)
        return folder

    def finished(self) -> dict[tuple[str, int], Path]:
        """Device and place of the bundle to the folder of the result, of all that are there."""
        folders = {key: self.path / name for key, name in self.plan.folder_names().items()}
        return {key: folder for key, folder in folders.items() if (folder / RESULT_NAME).is_file()}

    def keep(self, name: str, write: Callable[[Path], None]) -> Path:
        """Write a result, whole or not at all.

        Args:
            name: of its folder.
            write: is given the folder to write into.

        Returns:
            The result's folder.
        """
        with self._lock:
            if self._claimed is None:
                self.path = unused_path(self.path)
                with whole_folder(self.path) as partial:
                    (partial / RUN_NAME).write_text(self.plan.to_json(), encoding="utf-8")
                self._claimed, self._made = _locked(self.path), True
        with whole_folder(self.path / name) as partial:
            write(partial)
        return self.path / name

    def close(self) -> None:
        """Leave the folder to others; if nothing was finished, there is none."""
        if self._claimed is None:
            return
        os.close(self._claimed)
        self._claimed = None
        if self._made and not self.finished():
            with suppress(OSError):
                (self.path / RUN_NAME).unlink()
                self.path.rmdir()


def _locked(folder: Path) -> int:
    """A descriptor that keeps `folder` for this process, and lets go of it however the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BenchError(f"a run is still at work in {folder}: wait for its end, or stop it") from error
    except OSError:
        pass  # a file system without locks
    return descriptor
