"""What a target is: one format that a student can be compiled to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import InputSpec, OutputSpec
from deploy.calibration import CalibrationList
from deploy.errors import CalibrationError

if TYPE_CHECKING:
    from deploy.graph import Graph


@dataclass(frozen=True)
class Job:
    """What a target is asked to compile.

    Attributes:
        graph: the loaded student.
        precision: "fp32", "fp16" or "int8".
        imgsz: side of the input in pixels.
        calibration: the images for int8; None otherwise.
        folder: where the model file or files go.
    """

    graph: Graph
    precision: str
    imgsz: int
    calibration: CalibrationList | None
    folder: Path

    @property
    def calibration_images(self) -> CalibrationList:
        """The calibration list of an int8 job."""
        if self.calibration is None:
            raise CalibrationError("int8 needs calibration images: give --calibration")
        return self.calibration

    def calibration_inputs(self) -> Iterator[NDArray[np.float32]]:
        """The calibration images as the network meets them: (1, 3, imgsz, imgsz) float32 RGB in 0..1."""
        return self.calibration_images.inputs(self.graph.input_spec("images", self.imgsz))


@dataclass(frozen=True)
class Compiled:
    """What a target made.

    Attributes:
        model_file: name of the file that the engine opens, among the files in the job's folder.
        input: the image input.
        outputs: the raw head tensors.
    """

    model_file: str
    input: InputSpec
    outputs: tuple[OutputSpec, ...]


@dataclass(frozen=True)
class Target:
    """One format to compile to.

    Attributes:
        engine: name of the engine that runs it, one of `deploy.bundle.ENGINES`.
        packages: import name to distribution of everything the compiling needs.
        compile: does it.
    """

    engine: str
    packages: Mapping[str, str]
    compile: Callable[[Job], Compiled]


def input_spec(job: Job, name: str, **kind: Any) -> InputSpec:
    """The image input of `job`'s size; `kind` gives layout and dtype."""
    return job.graph.input_spec(name, job.imgsz, **kind)
