"""Distillation of a heavy detector or classifier into a small student: teacher + data -> ``student/``."""

import os

# ultralytics 8.4 sets OMP_NUM_THREADS to 1 where it is not set, before torch can count the cores.
if hasattr(os, "sched_getaffinity"):
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
