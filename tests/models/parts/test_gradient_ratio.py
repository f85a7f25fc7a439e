"""The gradient ratio by hand."""

import pytest
import torch
from torch import nn

from models.networks.layers.slimmable import Slimmable, Width
from models.networks.slimmed import slim
from models.parts.gradient_ratio import gradient_norms, gradient_ratios, ratio


def two_layers():
    width = Width([1.0, 0.25])
    network = slim(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8)), width, reads_all=True)
    layers = [layer for layer in network.modules() if isinstance(layer, Slimmable)]
    return network, width, layers


def test_evenly_spread_gradients():
    _, _, layers = two_layers()
    for layer in layers:
        layer.weight.grad = torch.ones_like(layer.weight)
    first, second = 3**0.5, 15**0.5  # of the first layer a width uses two of eight rows, and all columns
    assert second == pytest.approx(3.873, abs=1e-3)
    whole, prefix = gradient_norms(layers, 0.25)
    torch.testing.assert_close(whole, torch.tensor([24.0, 64.0]).sqrt())
    torch.testing.assert_close(prefix, torch.tensor([6.0, 4.0]).sqrt())
    found = gradient_ratios(layers, 0.25)
    assert found["gradient_ratio"].item() == pytest.approx((first + second) / 2)
    means = (24**0.5 + 8) / 2, (6**0.5 + 2) / 2
    assert found["gradient_ratio_of_means"].item() == pytest.approx((means[0] ** 2 - means[1] ** 2) ** 0.5 / means[1])


def test_only_layers_with_gradients_count_and_parts_are_squares_apart():
    _, _, (one, other) = two_layers()
    other.weight.grad = torch.randn(8, 8)
    whole, prefix = gradient_norms([one, other], 0.25)
    assert len(whole) == 1
    outside = other.weight.grad.clone()
    outside[:2, :2] = 0
    torch.testing.assert_close(prefix.square() + outside.square().sum(), whole.square())
    ratio = gradient_ratios([one, other], 0.25)["gradient_ratio"]
    torch.testing.assert_close(ratio, outside.norm() / other.weight.grad[:2, :2].norm())


def test_a_width_alone_leaves_no_rest():
    network, width, layers = two_layers()
    with width.at(0.25):
        network(torch.randn(4, 3)).sum().backward()
    assert gradient_ratios(layers, 0.25)["gradient_ratio"].item() == pytest.approx(0, abs=1e-3)


def test_a_prefix_that_rounding_makes_longer_than_the_whole_leaves_no_rest():
    whole = torch.tensor(2.0)
    assert ratio(whole, torch.nextafter(whole, torch.tensor(9.0))) == 0
