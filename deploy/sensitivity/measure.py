"""What quantizing each block or layer costs: one at a time, and all but one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy.agreement import Agreement, AgreementMeter
from deploy.calibration import fitted_input
from deploy.errors import CalibrationError, DeployError, StudentError
from deploy.fisher import fisher_ranges
from deploy.graph import Graph
from deploy.layers import block_of, student_layers
from deploy.reference import as_cells
from deploy.repair.fake_quant import LayerFunction, Range, Simulation, measure_ranges
from deploy.sensitivity.partial import Choice, PartialQuantizer

SCHEMA = 1
GRANULARITIES = ("block", "layer")


@dataclass(frozen=True)
class Cost:
    """What one block or layer costs in INT8.

    Attributes:
        name: as the checkpoint calls it; `Quantization.float_layers` takes it.
        layers: how many layers with weights it has.
        macs_share: its part of the network's multiplications, 0..1.
        values_share: its part of the values that the network's layers make, 0..1.
        weights_percent: damage with its weights alone in INT8; see `Agreement.damage_percent`.
        activations_percent: damage with the activations alone that it reads and makes.
        damage_percent: damage with both, all else float.
        class_sqnr_db: of the same.
        box_sqnr_db: of the same.
        relief_percent: how much the damage of the whole network in INT8 shrinks with this one kept in float; None
            where it was not measured.
    """

    name: str
    layers: int
    macs_share: float
    values_share: float
    weights_percent: float
    activations_percent: float
    damage_percent: float
    class_sqnr_db: float
    box_sqnr_db: float
    relief_percent: float | None


@dataclass(frozen=True)
class Sensitivity:
    """The costs of all blocks or layers of a student, in forward order.

    Attributes:
        student: its name.
        student_sha256: of the checkpoint.
        imgsz: side of the input in pixels.
        granularity: "block" or "layer".
        images: how many it was measured on.
        whole_percent: damage with everything in INT8.
        costs: one for each, in forward order.
        schema: version of this layout.
    """

    student: str
    student_sha256: str
    imgsz: int
    granularity: str
    images: int
    whole_percent: float
    costs: tuple[Cost, ...]
    schema: int = SCHEMA

    def ranked(self) -> list[Cost]:
        """The costliest first; of equal ones the first in the network."""
        return sorted(self.costs, key=lambda cost: -cost.damage_percent)

    def to_json(self) -> str:
        """As the file `sensitivity.json`: what is not finite is written as null."""
        record = asdict(self)
        record["costs"] = [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in one.items()
            }
            for one in record["costs"]
        ]
        return json.dumps(record, indent=2) + "\n"

    @staticmethod
    def from_json(text: str, source: Path) -> Sensitivity:
        """Read what `to_json` wrote; `source` is what to call it in errors.

        Raises:
            DeployError: not such a file.
        """
        try:
            record = json.loads(text)
            if record["schema"] != SCHEMA:
                raise DeployError(f"{source} has schema {record['schema']!r}, this version reads {SCHEMA}")
            costs = tuple(
                Cost(**{field.name: _read(field.name, one) for field in fields(Cost)}) for one in record["costs"]
            )
            return Sensitivity(**{**record, "costs": costs})
        except (ValueError, TypeError, LookupError) as error:
            raise DeployError(
                f"{source} is no sensitivity.json ({error}): make it with python -m deploy.sensitivity"
            ) from error


def _read(name: str, record: Mapping[str, Any]) -> Any:
    value = record[name]
    # JSON has no infinity; the noise of an exact layer is 0.
    return math.inf if value is None and name.endswith("_db") else value


class Probe:
    """A student, some of its training images, and the damage that any choice of layers does on them."""

    def __init__(self, graph: Graph, images: Sequence[Path], imgsz: int) -> None:
        """Read the images and measure the ranges of all activations.

        Raises:
            CalibrationError: no images.
            StudentError: a network whose layers cannot be told apart.
        """
        if not images:
            raise CalibrationError("no images to measure on: give --calibration a data.yaml or a folder of images")
        self.graph = graph
        spec = graph.input_spec("images", imgsz)
        self.images: list[Tensor] = [torch.from_numpy(fitted_input(image, spec)) for image in images]
        self.layers = tuple(layer.name for layer in student_layers(graph))
        self.quantizer = PartialQuantizer(graph.network, _ranges(graph, self.images))
        if self.quantizer.layer_count != len(self.layers):
            raise StudentError(
                f"the student runs {self.quantizer.layer_count} layers and names {len(self.layers)}: "
                "its layers cannot be told apart"
            )
        self.everything = frozenset(range(len(self.layers)))

    def numbers(self, names: Iterable[str]) -> frozenset[int]:
        """Numbers of the layers that `names` are or are prefixes of."""
        prefixes = tuple(names)
        return frozenset(
            number
            for number, layer in enumerate(self.layers)
            if any(layer == name or layer.startswith(f"{name}.") for name in prefixes)
        )

    def damages(self, choices: Sequence[Choice], advance: Callable[[], None] = lambda: None) -> list[Agreement]:
        """Agreement with the float network for each choice, over all images; `advance` is called after each image."""
        meters = [AgreementMeter(self.graph.outputs, self.graph.reg_max) for _ in choices]
        for image in self.images:
            outputs = self.quantizer.outputs(image, choices)
            expected = [as_cells(one) for one in next(outputs)]
            for meter, met in zip(meters, outputs, strict=True):
                meter.add(expected, [as_cells(one) for one in met])
            advance()
        return [meter.result() for meter in meters]

    def shares(self) -> tuple[list[float], list[float]]:
        """Of each layer its part of the network's multiplications and of the values that layers make, 0..1."""
        macs, values = layer_sizes(self.graph.network, self.images[0])
        return [one / sum(macs) for one in macs], [one / sum(values) for one in values]


def _ranges(graph: Graph, images: Sequence[Tensor]) -> tuple[Range, ...]:
    """As the targets choose them by themselves."""
    if graph.ranges is not None:
        return tuple(Range(low, high) for low, high in graph.ranges)
    if graph.task == "classify":
        return measure_ranges(graph.network, images, whole=True)
    return fisher_ranges(graph, graph.network, images)


def measure(
    probe: Probe, granularity: str = "block", reverse: bool = False, advance: Callable[[], None] = lambda: None
) -> tuple[float, tuple[Cost, ...]]:
    """The damage of the whole network in INT8 in percent, and the cost of every block or layer.

    Args:
        probe: the student and its images.
        granularity: "block" or "layer".
        reverse: measure `Cost.relief_percent` too, which doubles the time.
        advance: called after each image.
    """
    groups: dict[str, set[int]] = {}
    for number, layer in enumerate(probe.layers):
        groups.setdefault(block_of(layer) if granularity == "block" else layer, set()).add(number)
    parts = [frozenset(numbers) for numbers in groups.values()]
    none = frozenset[int]()
    choices = [probe.quantizer.quantized(probe.everything)]
    for part in parts:
        both = probe.quantizer.quantized(part)
        choices += [both, Choice(both.layers, none), Choice(none, both.sites)]
    if reverse:
        choices += [probe.quantizer.quantized(probe.everything - part) for part in parts]
    whole, *rest = probe.damages(choices, advance)
    macs, values = probe.shares()
    costs = []
    for index, (name, part) in enumerate(zip(groups, parts, strict=True)):
        whole_part, weights, activations = rest[3 * index : 3 * index + 3]
        spared = rest[3 * len(parts) + index] if reverse else None
        costs.append(
            Cost(
                name=name,
                layers=len(part),
                macs_share=sum(macs[number] for number in part),
                values_share=sum(values[number] for number in part),
                weights_percent=weights.damage_percent,
                activations_percent=activations.damage_percent,
                damage_percent=whole_part.damage_percent,
                class_sqnr_db=whole_part.class_sqnr_db,
                box_sqnr_db=whole_part.box_sqnr_db,
                relief_percent=None if spared is None else whole.damage_percent - spared.damage_percent,
            )
        )
    return whole.damage_percent, tuple(costs)


def layers_to_blame(graph: Graph, images: Sequence[Path], imgsz: int, n: int = 3) -> list[tuple[str, float]]:
    """The `n` blocks whose INT8 alone does most damage, costliest first.

    Args:
        graph: the student.
        images: some of its calibration images; 4 to 8 are enough.
        imgsz: side of the input in pixels.
        n: how many blocks to name.

    Returns:
        Names as `Quantization.float_layers` takes them, and the damage of each in percent; see `Agreement`.

    Raises:
        DeployError: no images, or a student whose layers cannot be told apart.
    """
    probe = Probe(graph, images, imgsz)
    blocks = tuple(dict.fromkeys(map(block_of, probe.layers)))
    damages = probe.damages([probe.quantizer.quantized(probe.numbers([block])) for block in blocks])
    named = [(block, one.damage_percent) for block, one in zip(blocks, damages, strict=True)]
    return sorted((one for one in named if math.isfinite(one[1])), key=lambda one: -one[1])[:n]


def layer_sizes(network: nn.Module, image: Tensor) -> tuple[list[int], list[int]]:
    """Multiplications of each layer for one image, and how many values it makes, in forward order."""
    macs: list[int] = []
    values: list[int] = []

    def visit(number: int, x: Tensor, weight: Tensor, bias: Tensor | None, layer: LayerFunction) -> Tensor:
        made = layer(x, weight, bias)
        # Each weight of a convolution multiplies once for every place of its smaller side.
        places = min(x[0, 0].numel(), made[0, 0].numel()) if x.ndim == 4 else 1
        macs.append(weight.numel() * places)
        values.append(made.numel())
        return made

    with torch.inference_mode(), Simulation(None, weights=False, visitor=visit):
        network(image)
    return macs, values
