"""The bundles of a run, opened and checked before anything is measured, each with its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.inputs import MeasuredImages, bundle_data, load_images
from deploy.bundle import Bundle
from deploy.cli import log, one_line
from deploy.errors import DeployError


@dataclass(frozen=True)
class Opened:
    """A bundle that can be measured.

    Attributes:
        bundle: the bundle.
        images: what to measure it on.
        data: where they come from.
    """

    bundle: Bundle
    images: MeasuredImages
    data: Path


class Opener:
    """Opens bundles; every data set is read once."""

    def __init__(self, limit: int | None, accuracy: bool) -> None:
        """Nothing is read yet.

        Args:
            limit: see `bench.inputs.load_images`.
            accuracy: whether the images must have a truth that fits the bundle, if they have one at all.
        """
        self.failures: dict[str, str] = {}
        self._limit = limit
        self._accuracy = accuracy
        self._images: dict[Path, MeasuredImages] = {}

    def open(self, path: Path, data: Path | None) -> Opened | None:
        """Open a bundle; None, and an entry in `failures`, if it cannot be measured.

        Args:
            path: its folder.
            data: what to measure it on; None for what its student was trained with.
        """
        try:
            bundle = Bundle.open(path)
            data = data or bundle_data(bundle)
            if data not in self._images:
                self._images[data] = load_images(data, self._limit)
            if self._accuracy:
                self._images[data].check_truth(bundle)
        except (DeployError, BenchError) as error:
            self.failures[str(path)] = one_line(error)
            log(f"error: {path.name or path}: {one_line(error)}")
            return None
        return Opened(bundle, self._images[data], data)
