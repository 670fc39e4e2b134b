"""Real bundles against the float student: agreement on training images, without a look at the validation set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.agreement import Agreement, AgreementMeter
from deploy.bundle import Bundle
from deploy.graph import Graph
from deploy.reference import TorchEngine
from deploy.runtime import load_engine, read_image
from deploy.runtime.fit import fit_image


class Judge:
    """The float student's answers on some images, to hold bundles against."""

    def __init__(self, graph: Graph, images: Sequence[Path], imgsz: int) -> None:
        """Run the float student on `images` at `imgsz` pixels, once."""
        self._graph = graph
        spec = graph.input_spec("images", imgsz)
        engine = TorchEngine(graph, spec)
        self._pixels: list[NDArray[np.uint8]] = [fit_image(read_image(image), spec) for image in images]
        self._expected: list[tuple[NDArray[Any], ...]] = [engine.infer(pixels) for pixels in self._pixels]

    def agreement(self, bundle: Bundle, threads: int) -> Agreement:
        """How far the bundle's raw tensors lie from the student's."""
        engine = load_engine(bundle, threads)
        meter = AgreementMeter(self._graph.outputs, self._graph.reg_max)
        try:
            for pixels, expected in zip(self._pixels, self._expected, strict=True):
                meter.add(expected, engine.infer(pixels))
        finally:
            engine.close()
        return meter.result()
