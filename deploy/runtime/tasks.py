"""Which class of the runtime opens the bundles of a task."""

from __future__ import annotations

from deploy.bundle import Manifest
from deploy.errors import BundleError

OPENED_BY = {"detect": "Detector", "segment": "Segmenter", "classify": "Classifier"}


def check_task(manifest: Manifest, task: str, source: str) -> None:
    """Refuse a bundle of another task than the one that is about to run it; `source` names it in the error.

    Raises:
        BundleError: the task differs.
    """
    if manifest.task != task:
        raise BundleError(
            f"{source} is of task {manifest.task!r}, expected {task!r}: open it with "
            f"deploy.runtime.{OPENED_BY[manifest.task]} instead of {OPENED_BY[task]}"
        )
