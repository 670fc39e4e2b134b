"""`python -m bench.studies.runtime_worker`: one contender of the runtime study in a process of its own.

It reads requests from stdin and answers each on stdout, both one JSON object a line. The first request opens the
contender. Two engines, or an engine and torch, in one process would slow each other: their idle threads wait by
spinning.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError
from bench.machine import peak_rss_bytes
from bench.studies.runtime_contenders import Contender, open_contender
from deploy.cli import one_line
from deploy.errors import DeployError
from deploy.runtime import read_image

Image = NDArray[np.uint8]
Request = Mapping[str, Any]


def main() -> int:
    """Serve requests until stdin ends; returns the exit code."""
    _end_with_host()
    answers = _claimed_stdout()
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if worker is None:
                worker = Worker(request)
                answer: dict[str, Any] = {"facts": worker.contender.facts()}
            else:
                answer = worker.answer(request)
        except (
            BenchError,
            DeployError,
            OSError,
            RuntimeError,
            LookupError,
            ValueError,
            TypeError,
            AttributeError,
        ) as error:
            answer = {"error": f"{type(error).__name__}: {one_line(error)}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


class Worker:
    """A contender and the images it works on, decoded beforehand."""

    def __init__(self, request: Request) -> None:
        """Open the contender that `request` describes; see `open_contender`.

        `request["images"]` are paths, decoded when they are first asked for; `request["cpus"]` is how many processors
        this process may use.
        """
        if hasattr(os, "sched_setaffinity"):
            allowed = sorted(os.sched_getaffinity(0))[: int(request["cpus"])]
            os.sched_setaffinity(0, allowed)
        self._paths = [Path(path) for path in request["images"]]
        self._decoded: dict[int, Image] = {}
        self.contender: Contender = open_contender(request)

    def answer(self, request: Request) -> dict[str, Any]:
        """Answer one request; its `do` says what.

        - `time`: seconds per image of `images` (indices), from the decoded image to the boxes.
        - `stages`: seconds of preprocessing, inference and postprocessing of the same.
        - `engine`: the total, and the engine's own call alone, repeated on the same input right afterwards.
        - `detect`: detections of `image` (an index) at `conf`.
        - `files`: detect `count` images, read from their files; the peak memory of this process.
        """
        actions: dict[str, Callable[[Request], dict[str, Any]]] = {
            "time": self._time,
            "stages": self._stages,
            "engine": self._engine,
            "detect": self._detect,
            "files": self._files,
        }
        return actions[request["do"]](request)

    def _time(self, request: Request) -> dict[str, Any]:
        totals_s, found = [], 0
        for image in self._images(request):
            start = time.perf_counter()
            boxes = self.contender.detect(image)
            totals_s.append(time.perf_counter() - start)
            found += self.contender.count(boxes)
        return {"totals_s": totals_s, "found": found, "threads": _threads_of_process()}

    def _stages(self, request: Request) -> dict[str, Any]:
        return {"stages_s": [self.contender.stages_s(image) for image in self._images(request)]}

    def _engine(self, request: Request) -> dict[str, Any]:
        pairs = [self.contender.total_and_call_s(image) for image in self._images(request)]
        return {"totals_s": [total for total, _ in pairs], "calls_s": [call for _, call in pairs]}

    def _detect(self, request: Request) -> dict[str, Any]:
        from bench.measure import encode_detections

        index = int(request["image"])
        return encode_detections(index, self.contender.detections(self._image(index), float(request["conf"])))

    def _files(self, request: Request) -> dict[str, Any]:
        found = 0
        for index in range(int(request["count"])):
            path = self._paths[index % len(self._paths)]
            found += self.contender.count(self.contender.detect_file(path))
        return {"found": found, "peak_rss_bytes": peak_rss_bytes(), "opencv": "cv2" in sys.modules}

    def _images(self, request: Request) -> list[Image]:
        return [self._image(index) for index in request["images"]]

    def _image(self, index: int) -> Image:
        if index not in self._decoded:
            self._decoded[index] = self.contender.in_its_order(read_image(self._paths[index]))
        return self._decoded[index]


def _end_with_host() -> None:
    """Have the kernel end this process when the host dies: stopped by SIGSTOP, it would stay for good."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _threads_of_process() -> int | None:
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()


def _claimed_stdout() -> IO[str]:
    """Stdout for answers alone: whatever a runtime prints goes to stderr from now on."""
    claimed = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    return claimed


if __name__ == "__main__":
    sys.exit(main())
