"""Goodness of classes' channels, by hand, and units that read none of it."""

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.networks.goodness_vgg import GoodnessVGG
from models.networks.heads.goodness import ClassGoodness
from models.networks.vgg import VGG

MAPS = torch.tensor([[[[1.0, 2.0]], [[3.0, 6.0]], [[0.0, 4.0]], [[2.0, 0.0]]]])  # one image, 4 channels of 1 × 2


@pytest.mark.parametrize(
    ("options", "logits"),
    [
        ({}, [3.0, 1.5]),
        ({"of": "squares"}, [12.5, 5.0]),
        ({"temperature": 0.5}, [6.0, 3.0]),
        ({"of": "squares", "temperature": 10.0}, [1.25, 0.5]),
    ],
)
def test_goodness_is_the_mean_of_a_class_s_channels_and_positions(options, logits):
    head = ClassGoodness((4, 1, 2), 2, **options)
    assert head(MAPS).tolist() == [logits]
    assert head(MAPS.to(memory_format=torch.channels_last)).tolist() == [logits]
    assert not [*head.parameters()]


def test_vectors_have_goodness_too():
    assert ClassGoodness((4,), 2)(torch.tensor([[1.0, 3.0, 5.0, 8.0]])).tolist() == [[2.0, 6.5]]


def test_half_precision_is_averaged_in_float32():
    logits = ClassGoodness((4, 1, 2), 2, of="squares")(MAPS.to(torch.bfloat16))
    assert logits.dtype == torch.float32
    assert logits.tolist() == [[12.5, 5.0]]


@pytest.mark.parametrize("make", [lambda: ClassGoodness((24, 3, 3), 10), lambda: GoodnessVGG((3, 8, 8), 10, (24, 10))])
def test_channels_that_are_no_equal_sets_are_refused(make):
    with pytest.raises(NetworkError, match=r"24 channels cannot be 10 equal sets, one for each class: .*, such as 20"):
        make()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return GoodnessVGG((3, 8, 8), 2, (4, "M", 6, 8), hidden=(10,)).eval()


def test_what_a_unit_reads_has_no_goodness(network):
    x = network.units.conv1(torch.randn(5, 3, 8, 8))
    read = network.units.conv2[0](x)
    assert ClassGoodness((4, 4, 4), 2)(x).std() > 0.01
    torch.testing.assert_close(ClassGoodness((4, 4, 4), 2)(read), torch.zeros(5, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(ClassGoodness((4, 4, 4), 2, of="squares")(read), torch.ones(5, 2), atol=1e-2, rtol=0)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_scale_and_the_goodness_of_one_unit_change_nothing_in_the_next(network, number):
    x = network.units[:number](torch.randn(5, 3, 8, 8)).detach()
    scale = torch.ones(x.shape[1]).view(-1, *[1] * (x.dim() - 2))
    scale[: len(scale) // 2] = 3.0  # of the first class only
    louder, raised, unit = scale * x, x + scale, network.units[number]
    for other in (7 * x, louder, raised):
        torch.testing.assert_close(unit(other), unit(x), atol=2e-3, rtol=2e-3)


def test_without_standardisation_they_do():
    torch.manual_seed(0)
    unit, x = VGG((3, 8, 8), 2, (4, 6), batch_norm=False).units.conv2, torch.rand(5, 4, 8, 8)
    assert (unit(7 * x) - unit(x)).abs().max() > 0.1


def test_the_image_is_standardised_as_a_whole(network):
    x = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(network.units.conv1(5 * x + 2), network.units.conv1(x), atol=1e-4, rtol=1e-4)
    apart = x * torch.tensor([1.0, 2.0, 3.0])[:, None, None]  # channels keep their proportions
    whole = apart.flatten(1)
    expected = (whole - whole.mean(1, keepdim=True)) / whole.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(network.units.conv1[0](apart).flatten(1), expected, atol=1e-4, rtol=1e-4)


def test_there_is_no_batch_norm_but_biases(network):
    assert not [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 5
    assert [*map(id, network.parameters())] == [id(p) for layer in layers for p in layer.parameters()]
    assert all(layer.bias is not None for layer in layers)
    plain = VGG((3, 8, 8), 2, (4, 6), hidden=(5,))
    assert [layer.bias is None for layer in plain.modules() if isinstance(layer, nn.Conv2d)] == [True, True]
    assert len([layer for layer in plain.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]) == 3
