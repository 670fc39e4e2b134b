"""One bundle's inferences, timed in a process of its own: thread pools that wait by spinning disturb each other.

Reads from standard input how many inferences to run, a number a line; writes their seconds as a JSON list a line; ends
with its input.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploy.bundle import Bundle
from deploy.runtime import load_engine


def main(arguments: Sequence[str]) -> int:
    """Serve the bundle and the number of threads that `arguments` name; returns the exit code."""
    bundle = Bundle.open(Path(arguments[0]))
    engine = load_engine(bundle, int(arguments[1]))
    spec = bundle.manifest.input
    pixels = np.random.default_rng(0).integers(0, 256, (1, spec.height, spec.width, 3), np.uint8)
    for line in sys.stdin:
        durations_s = []
        for _ in range(int(line)):
            start_s = time.perf_counter()
            engine.run(pixels)
            durations_s.append(time.perf_counter() - start_s)
        sys.stdout.write(json.dumps(durations_s) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
