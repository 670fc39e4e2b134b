"""What a target is: one format that a student can be compiled to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import InputSpec, OutputSpec
from deploy.calibration import CalibrationList
from deploy.errors import CalibrationError
from deploy.quantization import AS_THE_TARGET_DOES, Quantization, Recipe

if TYPE_CHECKING:
    from deploy.fisher import KnownRanges
    from deploy.graph import Graph


@dataclass(frozen=True)
class Job:
    """What a target is asked to compile.

    Attributes:
        graph: the loaded student.
        precision: one of the target's `precisions`.
        imgsz: side of the input in pixels.
        calibration: the images, for a precision of `deploy.quantization.CALIBRATED`; None otherwise.
        folder: where the model file or files go.
        quantization: what was asked of the quantizer.
    """

    graph: Graph
    precision: str
    imgsz: int
    calibration: CalibrationList | None
    folder: Path
    quantization: Quantization = AS_THE_TARGET_DOES

    @property
    def calibration_images(self) -> CalibrationList:
        """The calibration list of a job whose precision needs one."""
        if self.calibration is None:
            raise CalibrationError(f"{self.precision} needs calibration images: give --calibration")
        return self.calibration

    def recipe(self, float_layers: Sequence[str] = (), ranges: str | None = None) -> Recipe:
        """What was asked, with a target's defaults for what was not.

        Args:
            float_layers: names or prefixes of the layers that the target keeps in float by itself.
            ranges: the target's method; default by the task, see `CalibrationList`.

        Raises:
            ExportError: the student has no layer of a name that was asked for.
        """
        from deploy.layers import layers_below

        asked = self.quantization
        default = ranges or ("minmax" if self.graph.task == "classify" else "fisher")
        names = float_layers if asked.float_layers is None else asked.float_layers
        return Recipe(asked.ranges or default, asked.percentile, layers_below(names, self.graph))

    def known_ranges(self, recipe: Recipe) -> KnownRanges | None:
        """Ranges that go before those of a recipe's method; None where the target finds all of them itself."""
        if recipe.ranges != "fisher":
            return None
        from deploy.fisher import known_ranges

        return known_ranges(self.graph, self.calibration_inputs(), len(self.calibration_images))

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
        recipe: how it was quantized; None of a float model.
    """

    model_file: str
    input: InputSpec
    outputs: tuple[OutputSpec, ...]
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Target:
    """One format to compile to.

    Attributes:
        engine: name of the engine that runs it, one of `deploy.bundle.ENGINES`.
        packages: import name to distribution of everything the compiling needs.
        compile: does it.
        precisions: what it can be compiled to, some of `deploy.bundle.PRECISIONS`.
    """

    engine: str
    packages: Mapping[str, str]
    compile: Callable[[Job], Compiled]
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")


def input_spec(job: Job, name: str, **kind: Any) -> InputSpec:
    """The image input of `job`'s size; `kind` gives layout and dtype."""
    return job.graph.input_spec(name, job.imgsz, **kind)
