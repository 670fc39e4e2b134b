"""A training on the CPU uses the cores that it may."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("asked", [None, "1"])
def test_torch_uses_every_core_unless_told_otherwise(asked: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if asked is not None:
        environment["OMP_NUM_THREADS"] = asked
    program = "import distill.yolo, torch; print(torch.get_num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    expected = asked or str(len(os.sched_getaffinity(0)))
    assert done.stdout.split()[-1] == expected
