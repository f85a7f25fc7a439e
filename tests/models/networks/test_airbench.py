"""Airbench: published counts, how it begins, sizes of images."""

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.networks.airbench import Airbench
from models.networks.memory.profile import profile

PUBLISHED = {
    "94": ({}, 118.1, 1_971_352),
    "95": ({"widths": (128, 384, 384)}, 301.6, 4_604_440),
    "96": ({"widths": (128, 384, 512), "residual": True, "bn_momentum": 0.1}, 452.0, 9_915_416),
}


@pytest.mark.parametrize(("options", "macs", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_counts(options, macs, parameters):
    """MACs of the method sheet; of the 94 % network also the number of trained parameters."""
    network = Airbench((3, 32, 32), 10, **options)
    costs = [cost for cost, _ in profile([*network.units, network.classifier], (3, 32, 32), convention="plain")]
    assert sum(cost.forward_macs for cost in costs) / 1e6 == pytest.approx(macs, abs=0.05)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == parameters
    assert [cost.output_shape[1] for cost in costs[:-1]] == [31, 15, 15, 7, 7, 3, 3]


def test_names_of_units():
    assert Airbench((3, 32, 32), 10).unit_names == ["whiten", "g1a", "g1b", "g2a", "g2b", "g3a", "g3b"]


def convolutions(network):
    return [layer for layer in network.units.modules() if isinstance(layer, nn.Conv2d)][1:]


def test_first_filters_hand_their_input_on():
    torch.manual_seed(0)
    for layer in convolutions(Airbench((3, 32, 32), 10)):
        x = torch.randn(2, layer.in_channels, 5, 5)
        torch.testing.assert_close(layer(x)[:, : layer.in_channels], x)


def test_what_does_not_learn():
    fixed = [name for name, p in Airbench((3, 32, 32), 10).named_parameters() if not p.requires_grad]
    assert fixed[0] == "units.whiten.0.weight"
    assert len(fixed) == 1 + 6  # and the scales of BatchNorm
    norm = Airbench((3, 32, 32), 10).units.g1a[2]
    assert (norm.eps, norm.momentum) == (1e-12, 0.4)


def test_classifier_and_its_scale():
    torch.manual_seed(0)
    network = Airbench((3, 32, 32), 10).eval()
    pool, linear, _ = network.classifier
    assert float(linear.weight.detach().std()) == pytest.approx(9 / 256, rel=0.05)  # nearly that of the Muon script
    features = network.units(torch.randn(2, 3, 32, 32))
    expected = nn.functional.max_pool2d(features, 3).flatten(1) @ linear.weight.T / 9
    torch.testing.assert_close(network.classifier(features), expected)
    assert pool(features).shape == (2, 256)


def test_the_residual_unit_is_the_published_sum():
    torch.manual_seed(0)
    unit = Airbench((3, 32, 32), 10, (8, 8), residual=True).units.g1b
    first, norm, activation, second, other_norm = unit.branch
    x = torch.randn(4, 8, 5, 5)
    expected = nn.functional.gelu(x + other_norm(second(activation(norm(first(x))))))
    torch.testing.assert_close(unit(x), expected)


@pytest.mark.parametrize(
    ("shape", "widths", "why"), [((3, 8, 8), (8, 8, 8), "too often"), ((3, 32, 32), (), "a group")]
)
def test_what_does_not_fit_is_refused(shape, widths, why):
    with pytest.raises(NetworkError, match=why):
        Airbench(shape, 10, widths)


def test_other_images():
    assert Airbench((1, 8, 8), 7, (4, 6))(torch.randn(2, 1, 8, 8)).shape == (2, 7)
