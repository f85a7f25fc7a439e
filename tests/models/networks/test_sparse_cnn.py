"""Sparse convolutions: sizes, weights that stay 0, channels that compete."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Adam

from losses.errors import NetworkError
from models.networks.layers.competition import ChannelCompetition
from models.networks.layers.pruned import PrunedConv2d
from models.networks.sparse_cnn import SparseCNN


@pytest.mark.parametrize(("image", "features"), [((1, 28, 28), 6272), ((3, 32, 32), 8192)])
def test_maps_of_published_sizes(image, features):
    network = SparseCNN(image, 10)
    assert network.classifier[1].in_features == features
    assert [unit[0].kernel_size for unit in network.units] == [(5, 5), (3, 3)]
    assert network(torch.rand(2, *image)).shape == (2, 10)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("competition", [False, True])
def test_a_unit_is_convolution_activation_and_pooling(average, competition):
    torch.manual_seed(0)
    network = SparseCNN((3, 10, 9), 2, channels=[4], pruned=0.3, average=average, competition=competition)
    x = torch.randn(5, 3, 10, 9)
    layer = network.units.conv1[0]
    z = F.conv2d(x, layer.weight, layer.bias, padding=2)
    z = ChannelCompetition()(z) if competition else z.relu()
    pool = F.avg_pool2d if average else F.max_pool2d
    torch.testing.assert_close(network.units(x), pool(z, 4, 2, 1))
    assert network.units(x).shape == (5, 4, 5, 4)


def test_pruned_weights_are_a_share_of_all_and_stay_zero():
    torch.manual_seed(0)
    layer = PrunedConv2d(3, 8, 5, pruned=0.8)
    gone = layer.weight == 0
    assert gone.sum() == 480
    assert (~gone).any(dim=(1, 2, 3)).all()  # drawn over all of them
    before, again = layer.weight.clone(), PrunedConv2d(3, 8, 5, pruned=0.8)
    assert not torch.equal(again.weight == 0, gone)
    again.load_state_dict(layer.state_dict())
    for one in (layer, again, copy.deepcopy(layer)):
        optimizer = Adam(one.parameters(), lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            one(torch.randn(2, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        assert torch.equal(one.weight == 0, gone)
        assert one.weight[~gone].ne(before[~gone]).all()


def test_nothing_is_pruned_unless_it_is_asked_for():
    layer, plain = PrunedConv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
    plain.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(4, 2, 6, 6)
    assert torch.equal(layer(x), plain(x))


def test_channels_compete_for_each_position():
    """By hand: means over positions are 2 and 1, what stands out (1, 0) and (0, 3), its means over channels."""
    x = torch.tensor([[[[3.0, 1.0]], [[-2.0, 4.0]]]])
    expected = torch.tensor([[[[0.5, 0.0]], [[0.0, 1.5]]]])
    torch.testing.assert_close(ChannelCompetition()(x), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(SparseCNN, (1, 28, 28), 10, channels=[]), "at least"),
        (partial(SparseCNN, (1, 7, 28), 10, channels=[4, 4, 4]), "3 convolutions with pooling do not go on 7×28"),
        (partial(SparseCNN, (1, 28, 28), 10, pruned=1.0), "none left"),
    ],
)
def test_what_cannot_be_built_is_told(make, words):
    with pytest.raises(NetworkError, match=words):
        make()
