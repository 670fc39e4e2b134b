"""Several devices measured at once, each in a thread of its own: none waits for another, and what one lost is retried.

A device that was reached and drops out (restarted, sshd killed, network gone) is tried again after each of
`RETRY_AFTER_S`, from the bundle that it was at. Whatever was finished before stays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.inputs import MeasuredImages
from bench.progress import Board
from bench.remote import Site
from bench.reported import Measured
from deploy.bundle import Bundle
from deploy.cli import one_line
from deploy.errors import DeployError
from devices import ConnectionFailedError, Device, DeviceError

# Two minutes and a quarter in all: a board restarts in half a minute to a minute.
RETRY_AFTER_S = (5.0, 10.0, 20.0, 40.0, 60.0)

_GIVEN_UP = "not measured, the device was given up"


@dataclass(frozen=True)
class Task:
    """One bundle to be measured on one device.

    Attributes:
        bundle: an opened bundle.
        images: what to measure it on.
        job: fields of `bench.measure.Job`.
        folder: name of the result's folder.
    """

    bundle: Bundle
    images: MeasuredImages
    job: dict[str, Any]
    folder: str

    @property
    def name(self) -> str:
        """The bundle's."""
        return self.bundle.path.resolve().name


@dataclass
class Lane:
    """One device, what it is to do, and what came of it.

    Attributes:
        device: not connected yet.
        tasks: in their order.
        finished: folders of the results.
        failures: path of a bundle to why there is no result.
        error: why the device was given up; None if it was not.
        broke: what ended the thread that was not foreseen, e.g. a disk of this machine that is full.
    """

    device: Device
    tasks: Sequence[Task]
    finished: list[Path] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    broke: BaseException | None = None


Keep = Callable[[Task, Device, Measured], Path]


def measure_all(lanes: Sequence[Lane], keep: Keep, board: Board) -> None:
    """Measure every task of every lane, the lanes side by side.

    Args:
        lanes: what came of each is written into it.
        keep: writes a result, says so, and returns its folder; called by any of the threads.
        board: for progress.

    Raises:
        KeyboardInterrupt: after all devices have ended in order.
        OSError: this machine failed, after the other lanes have ended.
    """
    stopping = threading.Event()
    drivers = [_Driver(lane, keep, board, stopping) for lane in lanes]
    try:
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.ended.wait()
    except KeyboardInterrupt:
        stopping.set()
        for lane in lanes:
            lane.device.stop()
        for driver in drivers:
            driver.ended.wait()
        raise
    finally:
        board.clear()
    for lane in lanes:
        if lane.broke is not None:
            raise lane.broke


class _Driver:
    """Works through one lane.

    Attributes:
        ended: set but for the time from its start until all is done and the device is closed. Not `Thread.join`: where
            that is interrupted by Ctrl-C, Python 3.11 takes the thread for ended, and does not wait for it again.
    """

    def __init__(self, lane: Lane, keep: Keep, board: Board, stopping: threading.Event) -> None:
        self._lane = lane
        self._device = lane.device
        self._keep = keep
        self._board = board
        self._stopping = stopping
        self._site: Site | None = None  # where the device is connected and has what it needs
        self.ended = threading.Event()
        self.ended.set()
        self._usable = False  # whether the last attempt came so far

    def start(self) -> None:
        self.ended.clear()
        # A daemon: a second Ctrl-C ends this process at once, and with it what its devices run.
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            for task in self._lane.tasks:
                if self._lane.error is not None:
                    self._lane.failures[str(task.bundle.path)] = _GIVEN_UP
                elif not self._stopping.is_set():
                    self._attempt(task)
        except BaseException as error:  # noqa: BLE001 - raised again by `measure_all`
            self._lane.broke = error
        finally:
            self._end()

    def _end(self) -> None:
        try:
            self._device.close()
        finally:
            self.ended.set()

    def _attempt(self, task: Task) -> None:
        try:
            self._lane.finished.append(self._keep(task, self._device, self._measured(task)))
        except (DeployError, BenchError, DeviceError) as error:
            if self._stopping.is_set():
                return
            message = one_line(error)
            self._lane.failures[str(task.bundle.path)] = message
            if not self._usable:
                self._lane.error = message
            self._board.log(f"error: {f'{task.name}: ' if self._usable else ''}{message}", self._device.name)

    def _measured(self, task: Task) -> Measured:
        """Measure a bundle; again, each time that the device drops out."""
        for attempt, wait_s in enumerate(RETRY_AFTER_S, 1):
            try:
                return self._once(task)
            except ConnectionFailedError as error:
                if not error.may_return or self._stopping.is_set():
                    raise
                name, count = self._device.name, len(RETRY_AFTER_S)
                self._board.log(f"warning: {task.name}: {one_line(error)}", name)
                self._board.show(name, task.name, f"lost, trying again in {wait_s:g} s ({attempt} of {count})")
                self._stopping.wait(wait_s)
        return self._once(task)

    def _once(self, task: Task) -> Measured:
        device = self._device
        self._usable = self._site is not None
        if self._site is None:
            if not device.shares_files:
                self._board.show(device.name, task.name, "connecting")
            tasks = self._lane.tasks
            sets = dict.fromkeys(tuple(one.images.paths) for one in tasks)
            self._site = Site(device, [one.bundle for one in tasks], list(sets))
            self._usable = True
        try:
            return self._site.measure(
                task.bundle,
                task.images.paths,
                task.job,
                lambda stage, percent: self._board.show(device.name, task.name, stage, percent),
            )
        except ConnectionFailedError:
            self._site = None  # it may have lost what was sent, too
            raise
