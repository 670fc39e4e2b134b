"""The throughput scenario: several streams at once, each with an engine of its own, as many images as they manage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.stages import Stages, timed_stages
from deploy.bundle import Bundle
from deploy.runtime import load_engine

Share = Callable[[float], None]


def measure_throughput(
    bundle: Bundle,
    images: Sequence[NDArray[np.uint8]],
    streams: int,
    threads: int,
    samples: int,
    min_seconds: float,
    options: Mapping[str, bool],
    share: Share,
) -> dict[str, Any]:
    """Run the three stages in `streams` threads at once, each on its own engine, after one image each to warm up.

    Args:
        bundle: what to run.
        images: decoded; every stream goes through all of them, from another one on.
        streams: how many at once, at least 1.
        threads: of all engines together; each has an equal part, at least one.
        samples: images over all streams, at least.
        min_seconds: at least so long.
        options: of the engines.
        share: is told how much of it is done, 0..1.

    Returns:
        `streams`, `threads_per_stream`, `images` (finished), `wall_s` (from the common start to the last end), `fps`
        (their quotient), `latency_s` (per stream, in order: preprocess to postprocess of each image).

    Raises:
        DeployError: an engine cannot be opened.
    """
    each = max(1, threads // streams)
    with ExitStack() as engines:
        stages = []
        for _ in range(streams):
            engine = load_engine(bundle, each, options)
            engines.callback(engine.close)
            stages.append(timed_stages(engine, bundle.manifest))
            _whole(stages[-1], images[0])
        latencies: list[list[float]] = [[] for _ in stages]
        ends, failures = [0.0] * streams, list[BaseException]()
        start = threading.Barrier(streams + 1)

        def work(index: int) -> None:
            start.wait()
            began, enough, done = time.perf_counter(), -(-samples // streams), latencies[index]
            try:
                while len(done) < enough or time.perf_counter() - began < min_seconds:
                    done.append(_whole(stages[index], images[(index + len(done)) % len(images)]))
                    if index == 0:
                        by_time = (time.perf_counter() - began) / min_seconds if min_seconds > 0 else 1.0
                        share(min(len(done) / enough, by_time))
            except BaseException as error:  # noqa: BLE001 - raised again below
                failures.append(error)
            ends[index] = time.perf_counter()

        workers = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(streams)]
        for worker in workers:
            worker.start()
        start.wait()
        began = time.perf_counter()
        for worker in workers:
            worker.join()
    if failures:
        raise failures[0]
    wall_s, finished = max(ends) - began, sum(map(len, latencies))
    return {
        "streams": streams,
        "threads_per_stream": each,
        "images": finished,
        "wall_s": wall_s,
        "fps": finished / wall_s,
        "latency_s": latencies,
    }


def _whole(stages: Stages, image: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    pixels, *rest = stages.preprocess(image)
    stages.postprocess(stages.run(pixels), *rest)
    return time.perf_counter() - started
