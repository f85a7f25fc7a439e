"""AugLocal's heads: which units they are made like, published counts, the light form."""

from functools import partial

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.airbench import Airbench
from models.networks.chain import Chain, FeatureShape
from models.networks.cut import block_shapes
from models.networks.heads.from_chain import AugLocalHead, picked_units, tapered_depth
from models.networks.memory.profile import profile
from models.networks.mlp import MLP
from models.networks.resnet import CifarResNet, ResNet
from models.networks.vgg import VGG, VGG6a


@pytest.mark.parametrize(
    ("unit", "units", "depth", "picks"),
    [
        (0, 16, 5, [3, 6, 9, 12, 15]),  # ResNet-32, code depth 5
        (6, 16, 3, [9, 12, 15]),
        (0, 55, 5, [11, 22, 32, 43, 54]),  # ResNet-110
        (12, 16, 5, [13, 14, 15]),
        (3, 8, 2, [5, 7]),
        (2, 5, 1, [4]),
        (1, 8, 4, [2, 4, 6, 7]),  # round halves to even: 2.5, 4, 5.5
        (4, 5, 2, []),
    ],
)
def test_picked_units(unit, units, depth, picks):
    assert picked_units(unit, units, depth) == picks


@pytest.mark.parametrize(
    ("depth", "depths"), [(5, [5, 5, 5, 4, 4, 4, 4, 3, 3, 3]), (3, [3] * 6 + [2] * 6), (2, [2] * 13), (1, [1] * 14)]
)
def test_published_depths_of_resnet32(depth, depths):
    assert [tapered_depth(depth, unit, 16, 0.5) for unit in range(len(depths))] == depths
    assert {tapered_depth(depth, unit, 16, 0.0) for unit in range(16)} == {depth}


def heads(network, depth, blocks, **options):
    shapes = block_shapes(network, [nn.Sequential(unit) for unit in network.units])
    return [(AugLocalHead(shape, 10, depth, **options), shape) for shape in shapes[:blocks]]


def counts(found):
    macs = sum(profile([head], shape, convention="plain")[0][0].forward_macs for head, shape in found)
    return macs / 1e6, sum(p.numel() for head, _ in found for p in head.parameters()) / 1e6


@pytest.mark.parametrize(
    ("depth", "macs", "parameters"), [(1, 104.9, 0.81), (2, 104.9, 1.34), (3, 123.7, 1.51), (5, 172.0, 1.68)]
)
def test_published_counts_of_resnet32(depth, macs, parameters):
    """K' = 16 − d blocks, the last of which ends with the network's classifier."""
    found = heads(CifarResNet((3, 32, 32), 10), depth, 15 - depth)
    assert counts(found) == (pytest.approx(macs, abs=0.05), pytest.approx(parameters, abs=0.005))


@pytest.mark.parametrize(("depth", "macs"), [(1, 370.7), (3, 540.6), (5, 866.2)])
def test_published_counts_of_resnet110(depth, macs):
    with torch.device("meta"):
        found = heads(CifarResNet((3, 32, 32), 10, 110), depth, 54 - depth)
    assert counts(found)[0] == pytest.approx(macs, abs=0.05)


def test_a_head_ends_where_the_released_code_ends_it():
    """From 32×16 to 64 channels with one pick the map is halved once only, and a BatchNorm is before the classifier."""
    (head, shape), *_ = heads(CifarResNet((3, 32, 32), 10), 1, 1)
    assert profile([head[0]], shape)[0][0].output_shape == (64, 16, 16)
    assert [type(layer).__name__ for layer in head] == ["BasicBlock", "GlobalAveragePool", "BatchNorm1d", "Linear"]
    deeper, _ = heads(CifarResNet((3, 32, 32), 10), 2, 1)[0]
    assert [type(layer).__name__ for layer in deeper] == ["BasicBlock", "BasicBlock", "GlobalAveragePool", "Linear"]


@pytest.mark.parametrize("network", [CifarResNet, partial(ResNet, depth=18, stem="cifar"), VGG6a, VGG, MLP, Airbench])
@pytest.mark.parametrize("reduce", [(), (2, 2)])
def test_heads_of_all_networks_learn_and_share_nothing(network, reduce):
    torch.manual_seed(0)
    model = DecoupledGreedy(network, (3, 32, 32), 10, num_blocks=3, head=partial(AugLocalHead, reduce=reduce))
    x = torch.randn(4, 3, 32, 32)
    for block, head in zip(model.blocks, model.heads, strict=True):
        x = block(x).detach()
        assert head(x).shape == (4, 10)
    storages = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(storages)) == len(storages)


def test_the_light_form_averages_first():
    network = CifarResNet((3, 32, 32), 10)
    [(head, shape)] = heads(network, 1, 1, reduce=[4])
    assert isinstance(head[0], nn.AdaptiveAvgPool2d)
    assert profile([head[0], head[1]], shape)[1][0].output_shape == (64, 8, 8)


def test_strides_of_airbench():
    """Sides 15 → 7 → 3, by max-pooling; averaged to 7 before, only the second halves, or none."""
    network = Airbench((3, 32, 32), 10)
    shape = block_shapes(network, [network.units[:3]])[0]
    assert (shape.unit, tuple(shape)) == (2, (64, 15, 15))
    heads = [AugLocalHead(shape, 10, 2, 0.0, reduce) for reduce in ((), [2], [2, 2], [2, 2, 2])]
    assert [[part.output_shape[1] for part, _ in profile([*head][:-3], shape)] for head in heads] == [
        [7, 3],
        [7, 7, 3],
        [7, 7, 3, 3],
        [7, 7, 3, 3],
    ]


def test_depth_0_is_the_chains_own_classifier():
    network = Airbench((3, 32, 32), 10)
    head = AugLocalHead(block_shapes(network, [network.units[:3]])[0], 10, depth=0)
    assert sum(p.numel() for p in head.parameters()) == 64 * 10
    assert head[-1].factor == pytest.approx(1 / 9)


def test_what_cannot_be_built_is_refused():
    network = VGG((3, 32, 32), 10)
    with pytest.raises(NetworkError, match="last unit of VGG"):
        AugLocalHead(block_shapes(network, [network.units])[0], 10)
    with pytest.raises(NetworkError, match="not those of a whole block"):
        AugLocalHead((16, 8, 8), 10)
    mine = Chain({"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 4, 3)}, nn.Linear(4, 2), (3, 8, 8), "Mine")
    with pytest.raises(NetworkError, match="unit_like"):
        AugLocalHead(FeatureShape((4, 6, 6), mine, 0), 10)
    with pytest.raises(NetworkError, match="unit_like"):
        CifarResNet((3, 32, 32), 10).unit_like(0, (16, 32, 32), halve=False)
