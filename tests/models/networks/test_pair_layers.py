"""Layers that read pairs, beside what they stand for."""

import pytest
import torch
from reference.self_contrastive import each_standardised, triangle
from torch import nn
from torch.nn import functional as F

from models.networks.pair_layers import Activity, PairCNN, PairConv, PairLayer, PairMLP, Pairs, Triangle


@pytest.fixture
def x():
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))  # two of three vectors


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return PairLayer(nn.Linear(6, 4))


def test_both_halves_have_the_same_weights(layer, x):
    a, b = x
    features, z = layer(Pairs(a, b))
    weight = torch.cat([layer.affine.weight] * 2, dim=1)
    expected = torch.cat([each_standardised(a), each_standardised(b)], dim=1) @ weight.T + 2 * layer.affine.bias
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(features, triangle(expected))


def test_a_pair_may_be_turned_round(layer, x):
    a, b = x
    torch.testing.assert_close(layer(Pairs(a, b)).preactivations, layer(Pairs(b, a)).preactivations)


def test_a_sample_is_paired_with_itself(layer, x):
    z = 2 * layer.affine(each_standardised(x[0]))
    torch.testing.assert_close(layer(Pairs(x[0])).preactivations, z)
    torch.testing.assert_close(layer(Pairs(x[0], x[0])).preactivations, z)
    torch.testing.assert_close(layer(x[0]), triangle(z))


def test_a_layer_that_does_not_pair_reads_one_sample(layer, x):
    layer.paired = False
    found = layer(Pairs(x[0]))
    assert isinstance(found, Activity)
    torch.testing.assert_close(found.preactivations, layer.affine(each_standardised(x[0])))


def test_triangle_takes_off_the_mean_over_units():
    assert Triangle()(torch.tensor([[1.0, 2.0, 6.0]])).tolist() == [[0.0, 0.0, 3.0]]
    maps = torch.tensor([[[[1.0, 5.0]], [[3.0, 1.0]]]])
    assert Triangle()(maps).tolist() == [[[[0.0, 2.0]], [[1.0, 0.0]]]]


def test_the_published_convolutions_halve_the_map():
    network, x = PairCNN((3, 32, 32), 10), torch.randn(2, 3, 32, 32)
    shapes = []
    for unit in network.units:
        x = unit(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(96, 16, 16), (384, 8, 8), (1536, 4, 4)]
    assert [(unit.affine.kernel_size, unit.affine.padding_mode) for unit in network.units] == [
        ((5, 5), "reflect"),
        ((3, 3), "reflect"),
        ((3, 3), "reflect"),
    ]
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("pool", ["max", "average"])
def test_maps_of_odd_sides_are_halved_and_rounded_up(pool):
    network = PairCNN((2, 7, 9), 10, [PairConv(3, pool=pool)])
    assert network.units(torch.randn(2, 2, 7, 9)).shape == (2, 3, 4, 5)


def test_a_convolution_by_hand():
    torch.manual_seed(0)
    network = PairCNN((2, 6, 6), 10, [PairConv(3, kernel=5), PairConv(4, pool="average", activation="relu")])
    first, second = network.units
    x = torch.randn(2, 2, 6, 6)
    padded = F.pad(each_standardised(x), (2, 2, 2, 2), mode="reflect")
    z = 2 * F.conv2d(padded, first.affine.weight, first.affine.bias)
    active = (z - z.mean(1, keepdim=True)).relu()
    expected = F.max_pool2d(active, 4, stride=2, padding=1, ceil_mode=True)
    torch.testing.assert_close(first(x), expected)
    z = 2 * F.conv2d(F.pad(each_standardised(expected), (1, 1, 1, 1), mode="reflect"), *second.affine.parameters())
    torch.testing.assert_close(second(expected), F.avg_pool2d(z.relu(), 2, ceil_mode=True))
    bound = (6 / (25 * (2 + 3))) ** 0.5
    assert 0.9 * bound < first.affine.weight.abs().max() <= bound


@pytest.mark.parametrize(("pairing", "paired"), [("first", [True, False, False]), ("all", [True, True, True])])
def test_which_layers_pair(pairing, paired):
    mlp = PairMLP((1, 4, 4), 10, hidden=[6, 5, 4], pairing=pairing)
    cnn = PairCNN((1, 8, 8), 10, [PairConv(4), PairConv(5), PairConv(6)], pairing=pairing)
    for network in (mlp, cnn):
        assert [unit.paired for unit in network.units] == paired


def test_a_perceptron_classifies_for_backpropagation():
    assert PairMLP((1, 4, 4), 10, hidden=[6, 5])(torch.randn(3, 1, 4, 4)).shape == (3, 10)
    assert [type(unit.activation) for unit in PairMLP((1, 4, 4), 10, [3, 2], activation="relu").units] == [nn.ReLU] * 2
