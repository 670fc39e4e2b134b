"""Weight repair as a whole: what it changes, what it keeps, and the same bytes every time."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from deploy.calibration import CalibrationList, choose_calibration
from deploy.errors import CalibrationError, ExportError
from deploy.graph import Graph, load_graph
from deploy.repair.adaround import Rounding, round_adaptively
from deploy.repair.bias import correct_bias
from deploy.repair.distance import output_distance
from deploy.repair.fake_quant import measure_ranges, round_weights, run_quantized
from deploy.repair.methods import METHODS, repair
from deploy.repair.names import METHOD_NAMES
from deploy.repair.qat import Training

SHORT = Training(steps=6, batch=2, crop=64, rate=0.002, check_every=3)


@pytest.fixture(scope="module")
def graph(deployed_student: Any) -> Graph:
    return load_graph(deployed_student.checkpoint)


@pytest.fixture(scope="module")
def calibration(deployed_student: Any) -> CalibrationList:
    return choose_calibration(deployed_student.data_yaml, 8)


def _images(graph: Graph, calibration: CalibrationList) -> torch.Tensor:
    spec = graph.input_spec("images", 96)
    return torch.cat([torch.from_numpy(one) for one in calibration.inputs(spec)])


def _weights(network: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.clone() for parameter in network.parameters()]


def test_the_same_images_and_seed_give_the_same_weights_and_another_seed_gives_others(
    graph: Graph, calibration: CalibrationList, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What was trained is kept, good or not: otherwise two refusals would be equal, too.
    monkeypatch.setattr("deploy.repair.methods.is_better", lambda distance, before: True)
    monkeypatch.setattr("deploy.repair.qat.is_better", lambda distance, before: True)
    one, two, other = (
        _weights(repair(graph, calibration, 96, ("qat", "bias"), seed, SHORT).graph.network) for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, graph.network.parameters(), strict=True))


def test_the_student_that_was_given_is_left_as_it_is(graph: Graph, calibration: CalibrationList) -> None:
    before = _weights(graph.network)
    repair(graph, calibration, 96, METHOD_NAMES, 0, SHORT)
    assert all(torch.equal(a, b) for a, b in zip(before, graph.network.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in graph.network.parameters())


def test_what_does_not_help_the_held_out_images_is_not_kept(
    graph: Graph, calibration: CalibrationList, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(
        task: Any, network: torch.nn.Module, ranges: Any, training: Any
    ) -> tuple[torch.nn.Module, dict[str, Any]]:
        spoilt = copy.deepcopy(network)
        next(iter(spoilt.parameters())).mul_(3)
        return spoilt, {}

    monkeypatch.setattr("deploy.repair.methods.METHODS", {**METHODS, "bias": spoil})
    repaired = repair(graph, calibration, 96, ("bias",))
    assert repaired.record["kept"] == []
    assert repaired.record["distance_after"] == repaired.record["distance_before"]
    assert repaired.record["steps"]["bias"]["distance"] > repaired.record["distance_before"]
    assert repaired.graph.network is graph.network
    assert "not kept" in capsys.readouterr().err


def test_the_record_says_what_was_done(graph: Graph, calibration: CalibrationList) -> None:
    record = repair(graph, calibration, 96, ("bias", "qat"), 3, SHORT).record
    assert record["methods"] == ["qat", "bias"]
    assert (record["seed"], record["imgsz"], record["images"], record["held_out"]) == (3, 96, 7, 1)
    assert record["calibration_sha256"] == calibration.record()["list_sha256"]
    assert record["training"]["steps"] == 6
    assert [one["step"] for one in record["steps"]["qat"]["history"]] == [0, 3, 6]
    assert record["distance_after"] <= record["distance_before"]


def test_an_unknown_method_is_answered_with_the_known_ones(graph: Graph, calibration: CalibrationList) -> None:
    with pytest.raises(ExportError, match="no weight repair by 'magic': give some of equalise, qat, adaround, bias"):
        repair(graph, calibration, 96, ("magic",))


def test_too_few_images_are_refused(graph: Graph, calibration: CalibrationList) -> None:
    few = replace(calibration, images=calibration.images[:3], image_sha256=calibration.image_sha256[:3])
    with pytest.raises(CalibrationError, match="gives 3 calibration images, weight repair needs at least 4"):
        repair(graph, few, 96)


def test_adaptive_rounding_finds_a_grid_that_a_target_finds_again(graph: Graph, calibration: CalibrationList) -> None:
    images = _images(graph, calibration)
    ranges = measure_ranges(graph.network, [images])
    rounded = round_adaptively(graph.network, graph.network, images, ranges, 0, Rounding(iterations=20, positions=128))
    changed = 0
    for before, after in zip(graph.network.parameters(), rounded.parameters(), strict=True):
        if before.ndim == 4:
            assert torch.allclose(round_weights(after), after, rtol=1e-5, atol=1e-7)
            changed += int((after - round_weights(before)).abs().gt(1e-7).sum())
    assert changed > 1000  # it does not round to the nearest step everywhere


def test_adaptive_rounding_brings_a_layers_output_nearer_than_the_nearest_steps() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, stride=2, padding=1)).eval()
    # Coarse: one weight per channel is far greater than all others.
    network[0].weight.data[:, 0, 0, 0] = 8.0
    images = torch.rand(4, 3, 16, 16)
    ranges = measure_ranges(network, [images])
    rounded = round_adaptively(network, network, images, ranges, 0, Rounding(iterations=200, positions=256))
    with torch.no_grad():
        expected = network(images)
        nearest = (run_quantized(network, images, ranges)[0] - expected).square().mean()
        adaptive = (run_quantized(rounded, images, ranges)[0] - expected).square().mean()
    assert adaptive < 0.6 * nearest


def test_bias_correction_takes_off_the_mean_error_of_a_layer() -> None:
    torch.manual_seed(1)
    layers = torch.nn.Conv2d(3, 5, 1), torch.nn.SiLU(), torch.nn.Conv2d(5, 4, 1), torch.nn.Flatten()
    network = torch.nn.Sequential(*layers).eval()
    layers[2].weight.data[:, 0] = 4.0  # coarse steps for the others
    images = torch.rand(4, 3, 8, 8)
    ranges = measure_ranges(network, [images])
    corrected = correct_bias(network, network, images, ranges)

    def mean_error(candidate: torch.nn.Module) -> float:
        with torch.no_grad():
            error = network(images) - run_quantized(candidate, images, ranges)[0]
        return float(error.view(4, 4, 64).mean(dim=(0, 2)).abs().max())

    assert mean_error(network) > 1e-3
    assert mean_error(corrected) < 1e-5


def test_bias_correction_leaves_the_maps_of_raw_outputs_alone(graph: Graph, calibration: CalibrationList) -> None:
    images = _images(graph, calibration)
    corrected = correct_bias(graph.network, graph.network, images, measure_ranges(graph.network, [images]))
    before, after = (dict(network.named_parameters()) for network in (graph.network, corrected))
    assert torch.equal(before["class_branches.0.2.bias"], after["class_branches.0.2.bias"])
    assert not torch.equal(before["class_branches.0.1.conv.bias"], after["class_branches.0.1.conv.bias"])


def test_the_distance_is_zero_for_equal_outputs_and_grows_with_the_error(graph: Graph) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = graph.network(torch.rand(2, 3, 96, 96))
    distances = [
        float(output_distance(graph.outputs, [one + noise * torch.randn_like(one) for one in outputs], outputs, 16))
        for noise in (0.0, 0.1, 0.3)
    ]
    assert distances[0] == pytest.approx(0, abs=1e-5)
    assert 0 < distances[1] < distances[2]
