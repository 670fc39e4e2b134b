"""Cross-layer equalisation: exact where it is done at all, and not done where it would not be."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from deploy.graph import load_graph
from deploy.repair.equalisation import equalise, find_pairs


class _ReluNet(nn.Module):
    """Convolutions by ReLU and pooling, one of them depthwise, and a side branch that reads the third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.c, self.d, self.e = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = F.relu(self.c(F.relu(self.b(F.max_pool2d(F.relu(self.a(x)), 2)))))
        return self.d(y), self.e(y)


def _uneven(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= torch.logspace(-2, 1, module.out_channels)[:, None, None, None]
    return network.eval()


def test_a_relu_network_computes_the_same_and_its_channels_become_alike() -> None:
    network, x = _uneven(_ReluNet()), torch.rand(2, 3, 16, 16)
    equalised, count = equalise(network, x)
    assert count == 2  # a and b, b and c; what two layers read is left alone
    with torch.no_grad():
        for before, after in zip(network(x), equalised(x), strict=True):
            assert torch.allclose(before, after, atol=1e-5, rtol=1e-5)
    spread = [net.a.weight.abs().flatten(1).amax(1) for net in (network, equalised)]
    assert spread[1].max() / spread[1].min() < 0.2 * spread[0].max() / spread[0].min()
    pair = equalised.a.weight.abs().flatten(1).amax(1), equalised.b.weight.abs().flatten(1).amax(1)
    assert torch.allclose(*pair, rtol=1e-2)


def test_the_network_that_was_given_is_left_as_it_is() -> None:
    network, x = _uneven(_ReluNet()), torch.rand(1, 3, 16, 16)
    before = network.a.weight.clone()
    equalise(network, x)
    assert torch.equal(network.a.weight, before)


def test_silu_an_addition_and_a_second_use_each_forbid_a_pair() -> None:
    class Forbidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.b(F.silu(self.a(x)))
            y = self.c(y + x)
            return self.c(F.relu(y))

    assert find_pairs(Forbidden().eval(), torch.rand(1, 3, 4, 4)) == []


def test_two_convolutions_with_nothing_between_are_a_pair() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3)).eval()
    assert len(find_pairs(network, torch.rand(1, 3, 8, 8))) == 1


def test_a_yolov8_has_no_pair(deployed_student: object) -> None:
    network = load_graph(deployed_student.checkpoint).network  # type: ignore[attr-defined]
    assert find_pairs(network, torch.zeros(1, 3, 64, 64)) == []
