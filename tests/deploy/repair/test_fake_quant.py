"""The simulated INT8: the targets' grids, straight-through gradients, and errors like those of real bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deploy.repair.fake_quant import Range, Simulation, measure_ranges, round_weights, run_quantized, weight_scales


def test_a_range_has_256_levels_and_holds_zero_exactly() -> None:
    grid = Range(-0.9, 1.7)
    values = grid.round(torch.linspace(-2, 3, 20001))
    assert len(values.unique()) == 256
    assert (values == 0).any()
    assert values.min() == pytest.approx(-0.9, abs=grid.scale / 2)
    assert values.max() == pytest.approx(1.7, abs=grid.scale / 2)


def test_weights_lie_on_127_steps_either_side_per_output_channel() -> None:
    weight = (
        torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-3, 2, 8)[:, None, None, None]
    )
    rounded = round_weights(weight)
    levels = rounded / weight_scales(weight).view(-1, 1, 1, 1)
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert levels.abs().flatten(1).amax(1).round().tolist() == [127.0] * 8
    assert ((rounded - weight).abs() <= weight_scales(weight).view(-1, 1, 1, 1) * 0.5001).all()


def test_rounded_weights_are_rounded_to_themselves() -> None:
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    once = round_weights(weight)
    assert torch.allclose(round_weights(once), once, rtol=1e-6, atol=0)


def test_gradients_pass_the_rounding_and_stop_where_values_are_clipped() -> None:
    values = torch.tensor([-2.0, -0.31, 0.47, 5.0], requires_grad=True)
    Range(-1.0, 1.0).round(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = F.silu(self.first(x))
        a, b = y.chunk(2, 1)
        return (self.second(torch.cat([y, a + b, F.max_pool2d(b, 3, 1, 1)], 1)),)


def test_the_simulation_equals_the_same_network_rounded_by_hand() -> None:
    torch.manual_seed(2)
    network, x = _Net().eval(), torch.rand(2, 3, 9, 9)
    # In order: pixels, input of SiLU, both halves where they are added, product and sum where joined, the whole.
    ranges = measure_ranges(network, [x])
    with torch.no_grad():
        met = run_quantized(network, x, ranges)[0]
        weight, bias = round_weights(network.first.weight), network.first.bias
        before = ranges[1].round(F.conv2d(ranges[0].round(x), weight, bias, padding=1))
        y = before * torch.fake_quantize_per_tensor_affine(torch.sigmoid(before), 1 / 256, 0, 0, 255)
        a, b = (grid.round(half) for grid, half in zip(ranges[2:4], y.chunk(2, 1), strict=True))
        joined = torch.cat([ranges[4].round(y), ranges[5].round(a + b), F.max_pool2d(b, 3, 1, 1)], 1)
        expected = F.conv2d(ranges[6].round(joined), round_weights(network.second.weight), network.second.bias)
    assert len(ranges) == 7
    assert torch.allclose(met, expected, atol=1e-6)


def test_ranges_are_the_mean_of_the_images_extremes_or_the_extremes_over_all() -> None:
    network = nn.Conv2d(1, 1, 1, bias=False).eval()
    second = nn.Conv2d(1, 1, 1)
    network.weight.data.fill_(1.0)
    images = torch.stack([torch.full((1, 2, 2), 0.2), torch.full((1, 2, 2), 0.6)])
    chain = nn.Sequential(network, second).eval()
    assert measure_ranges(chain, images.split(1))[1].high == pytest.approx(0.4)
    assert measure_ranges(chain, [images])[1].high == pytest.approx(0.4)
    assert measure_ranges(chain, images.split(1), whole=True)[1].high == pytest.approx(0.6)
    assert measure_ranges(chain, images.split(1))[0] == Range(0.0, 1.0)


def test_a_silu_input_does_not_reach_below_its_floor() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.SiLU()).eval()
    network[0].weight.data.fill_(-40.0)
    network[0].bias.data.fill_(3.0)
    ranges = measure_ranges(network, [torch.rand(1, 1, 8, 8)])
    assert ranges[1].low == -6.0


def test_without_ranges_and_rounded_weights_nothing_changes() -> None:
    network, x = _Net().eval(), torch.rand(1, 3, 8, 8)
    with torch.no_grad(), Simulation(None, weights=False):
        met = network(x)[0]
    with torch.no_grad():
        assert torch.allclose(met, network(x)[0], atol=1e-6)


@pytest.mark.parametrize("engine", ["onnx", "openvino", "tflite"])
def test_its_error_is_like_that_of_a_real_bundle(
    engine: str, bundles: Callable[[str, str], Path], deployed_student: object
) -> None:
    from deploy.bundle import Bundle
    from deploy.calibration import choose_calibration
    from deploy.graph import load_graph
    from deploy.runtime import load_engine

    student = deployed_student
    graph = load_graph(student.checkpoint)  # type: ignore[attr-defined]
    spec = graph.input_spec("images", 96)
    images = list(choose_calibration(student.data_yaml, 8).inputs(spec))  # type: ignore[attr-defined]
    tensors = [torch.from_numpy(one) for one in images]
    ranges = measure_ranges(graph.network, tensors)
    compiled = load_engine(Bundle.open(bundles(engine, "int8")), 1)
    simulated, real = [], []
    for image, tensor in zip(images, tensors, strict=True):
        pixels = np.rint(image * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        with torch.no_grad():
            expected, met = graph.network(tensor), run_quantized(graph.network, tensor, ranges)
        for exact, fake, raw in zip(expected, met, compiled.infer(np.ascontiguousarray(pixels)), strict=True):
            cells = exact[0].flatten(1).T
            simulated.append(float((fake[0].flatten(1).T - cells).square().mean()))
            real.append(float((torch.from_numpy(raw) - cells).square().mean()))
    compiled.close()
    ratio = np.mean(real) / np.mean(simulated)
    assert 0.2 < ratio < 5
    assert np.corrcoef(np.log(simulated), np.log(real))[0, 1] > 0.5
