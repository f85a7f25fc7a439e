"""Auxiliary heads: their layers, and what they refuse."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.networks.heads.classifiers import AuxHead, CNNHead, ConvHead, LinearHead, MLPSRHead
from models.networks.layers.pooling import GlobalAveragePool

MAPS, VECTORS = (6, 8, 8), (6,)
flat = [nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten()]


def conv(channels_in, channels_out, kernel=3, stride=1):
    layer = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return [layer, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


def linear(inputs, outputs):
    return [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]


def mlp_sr(height, width):
    hidden = [nn.Linear(24, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(inplace=True)]
    pools = nn.AdaptiveAvgPool2d((height, width)), nn.AdaptiveAvgPool2d(2)
    return [pools[0], *conv(6, 6, 1) * 3, pools[1], nn.Flatten(), *hidden * 3, nn.Linear(24, 4)]


@pytest.mark.parametrize(
    ("make", "shape", "layers"),
    [
        (AuxHead, MAPS, [*conv(6, 12, stride=2), GlobalAveragePool(), *linear(12, 128), nn.Linear(128, 4)]),
        (AuxHead, (6, 1, 2), [*conv(6, 12, stride=2), GlobalAveragePool(), *linear(12, 128), nn.Linear(128, 4)]),
        (partial(AuxHead, convs=0, fcs=1), MAPS, [GlobalAveragePool(), nn.Linear(6, 4)]),
        (partial(AuxHead, convs=0, hidden=9), VECTORS, [*linear(6, 9), nn.Linear(9, 4)]),
        (
            partial(AuxHead, convs=3, fcs=3, hidden=9),
            MAPS,
            [
                *[*conv(6, 12, stride=2), *conv(12, 12) * 2, GlobalAveragePool()],
                *[*linear(12, 9), *linear(9, 9), nn.Linear(9, 4)],
            ],
        ),
        (MLPSRHead, (6, 8, 16), mlp_sr(2, 4)),
        (MLPSRHead, (6, 3, 1), mlp_sr(1, 1)),
        (
            CNNHead,
            (6, 1, 1),
            [*conv(6, 6) * 2, nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 4)],
        ),
        (LinearHead, (6, 7, 9), [*flat, nn.Linear(24, 4)]),
        (LinearHead, (6, 2, 2), [nn.Flatten(), nn.Linear(24, 4)]),
        (LinearHead, (6, 1, 3), [nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten(), nn.Linear(12, 4)]),  # not enlarged
        (partial(LinearHead, grid=(1, 4)), MAPS, [nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten(), nn.Linear(24, 4)]),
        (LinearHead, VECTORS, [nn.Linear(6, 4)]),
        (partial(ConvHead, layers=1, width=7), MAPS, [*flat, nn.Linear(24, 4)]),
        (partial(ConvHead, layers=1), VECTORS, [nn.Linear(6, 4)]),
        (ConvHead, MAPS, [*conv(6, 6), *flat, nn.Linear(24, 4)]),
        (partial(ConvHead, layers=3, width=7), MAPS, [*conv(6, 7), *conv(7, 7), *flat, nn.Linear(28, 4)]),
    ],
)
def test_layers_of_a_head(make, shape, layers):
    head = make(shape, 4)
    assert [repr(layer) for layer in head] == [repr(layer) for layer in layers]
    assert head(torch.randn(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize("make", [AuxHead, MLPSRHead, CNNHead, ConvHead])
def test_heads_initialise_their_convolutions(make):
    torch.manual_seed(0)
    for conv in (m for m in make((64, 4, 4), 10) if isinstance(m, nn.Conv2d)):
        expected = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        assert conv.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * conv.weight.numel()))


@pytest.mark.parametrize(
    ("make", "shape", "fault"),
    [
        (AuxHead, VECTORS, r"1c2f .*vectors \(6,\).*convs: 0"),
        (partial(AuxHead, convs=2, fcs=1), VECTORS, "2c1f .*vectors"),
        (MLPSRHead, VECTORS, "MLPSRHead .*vectors"),
        (CNNHead, VECTORS, "CNNHead .*vectors"),
        (ConvHead, VECTORS, "look-ahead head of 2 layers .*vectors"),
        (partial(ConvHead, layers=0), MAPS, "layers must be at least 1, not 0"),
        (partial(AuxHead, fcs=0), MAPS, "fcs must be at least 1"),
    ],
)
def test_heads_refuse(make, shape, fault):
    with pytest.raises(NetworkError, match=fault):
        make(shape, 4)


def test_global_average_pool_equals_torchs_with_one_gradient_for_all_pixels():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(3, 4, dtype=torch.float64)
    ours, theirs = GlobalAveragePool()(x), nn.AdaptiveAvgPool2d(1)(x).flatten(1)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].stride()[2:] == (0, 0)  # no copies, in whatever layout
