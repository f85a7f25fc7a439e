"""Auxiliary heads: structure, sizes and what they refuse."""

import math

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.networks.cut import block_shapes
from models.networks.heads.classifiers import AuxHead, CNNHead, ConvHead, LinearHead, MLPSRHead
from models.networks.layers.pooling import GlobalAveragePool
from models.networks.resnet import CifarResNet

BOUNDARIES = {
    1: ["layer3_4"],
    2: ["layer2_1", "layer3_4"],
    4: ["layer1_2", "layer2_1", "layer3_0", "layer3_4"],
    8: ["layer1_0", "layer1_2", "layer1_4", "layer2_1", "layer2_3", "layer3_0", "layer3_2", "layer3_4"],
    16: ["stem", *(f"layer{stage}_{block}" for stage in (1, 2, 3) for block in range(5))],
}
"""Modules that GN-DGL cuts a ResNet-32 into → units that end them, the last one included."""


def count(module):
    return sum(p.numel() for p in module.parameters())


def resnet32(factor):
    with torch.device("meta"):
        return CifarResNet((3, 32, 32), 10, depth=32, widths=[factor * w for w in (16, 16, 32, 64)])


@pytest.mark.parametrize(
    ("factor", "num_blocks", "millions"),
    [
        *[(1, k, m) for k, m in ((1, 0.092), (2, 0.120), (4, 0.222), (8, 0.362), (16, 0.661))],
        *[(2, k, m) for k, m in ((1, 0.364), (2, 0.473), (4, 0.875), (8, 1.424), (16, 2.593))],
    ],
)
def test_1c2f_heads_have_the_published_number_of_parameters(factor, num_blocks, millions):
    chain = resnet32(factor)
    shapes = dict(zip(chain.unit_names, block_shapes(chain, chain.units), strict=True))
    with torch.device("meta"):
        heads = [AuxHead(shapes[end], 10, hidden=128 * factor) for end in BOUNDARIES[num_blocks]]
    assert round(sum(map(count, heads)) / 1e6, 3) == millions


@pytest.mark.parametrize(("channels", "hidden", "millions"), [(64, 128, 0.092), (128, 256, 0.364)])
def test_final_1c2f_head_has_the_published_number_of_parameters(channels, hidden, millions):
    assert round(count(AuxHead((channels, 8, 8), 10, hidden=hidden)) / 1e6, 3) == millions


def conv_sizes(head):
    return [(m.in_channels, m.out_channels, m.stride[0], m.padding[0]) for m in head if isinstance(m, nn.Conv2d)]


def linear_sizes(head):
    return [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)]


@pytest.mark.parametrize(
    ("convs", "fcs", "conv_layers", "linear_layers"),
    [
        (0, 1, [], [(6, 4)]),
        (0, 2, [], [(6, 9), (9, 4)]),
        (1, 1, [(6, 12, 2, 1)], [(12, 4)]),
        (1, 2, [(6, 12, 2, 1)], [(12, 9), (9, 4)]),
        (1, 3, [(6, 12, 2, 1)], [(12, 9), (9, 9), (9, 4)]),
        (2, 2, [(6, 12, 2, 1), (12, 12, 1, 1)], [(12, 9), (9, 4)]),
    ],
)
def test_aux_head_layers(convs, fcs, conv_layers, linear_layers):
    head = AuxHead((6, 8, 8), 4, convs=convs, fcs=fcs, hidden=9)
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * convs + [GlobalAveragePool] + [nn.Linear, nn.ReLU] * (fcs - 1)
    assert [type(m) for m in head] == [*kinds, nn.Linear]
    assert conv_sizes(head) == conv_layers
    assert all(m.kernel_size == (3, 3) and m.bias is None for m in head if isinstance(m, nn.Conv2d))
    assert linear_sizes(head) == linear_layers
    assert head(torch.randn(2, 6, 8, 8)).shape == (2, 4)


def test_aux_head_is_1c2f_of_width_128_by_default():
    head = AuxHead((6, 8, 8), 10)
    assert conv_sizes(head) == [(6, 12, 2, 1)]
    assert linear_sizes(head) == [(12, 128), (128, 10)]


@pytest.mark.parametrize("side", [1, 2, 7])
def test_aux_head_takes_maps_of_any_size(side):
    assert AuxHead((4, side, side + 1), 10)(torch.randn(2, 4, side, side + 1)).shape == (2, 10)


def test_aux_head_without_convolutions_takes_vectors():
    head = AuxHead((6,), 4, convs=0, fcs=2, hidden=9)
    assert [type(m) for m in head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert head(torch.randn(2, 6)).shape == (2, 4)


@pytest.mark.parametrize(
    ("height", "width", "reduced"), [(32, 32, (8, 8)), (8, 16, (2, 4)), (3, 3, (1, 1)), (1, 1, (1, 1))]
)
def test_mlp_sr_head(height, width, reduced):
    head = MLPSRHead((5, height, width), 4)
    assert conv_sizes(head) == [(5, 5, 1, 0)] * 3
    assert all(m.kernel_size == (1, 1) for m in head if isinstance(m, nn.Conv2d))
    assert linear_sizes(head) == [(20, 20)] * 3 + [(20, 4)]
    assert [type(m) for m in head] == [
        nn.AdaptiveAvgPool2d,
        *[nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3,
        *[nn.AdaptiveAvgPool2d, nn.Flatten],
        *[nn.Linear, nn.BatchNorm1d, nn.ReLU] * 3,
        nn.Linear,
    ]
    features = torch.randn(2, 5, height, width)
    assert head[0](features).shape[2:] == reduced
    assert head(features).shape == (2, 4)


@pytest.mark.parametrize("side", [8, 1])
def test_cnn_head(side):
    head = CNNHead((5, side, side), 4)
    assert conv_sizes(head) == [(5, 5, 1, 1)] * 2
    assert linear_sizes(head) == [(20, 4)]
    assert [type(m) for m in head] == [
        *[nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2,
        *[nn.AdaptiveAvgPool2d, nn.BatchNorm2d, nn.Flatten, nn.Linear],
    ]
    assert head(torch.randn(2, 5, side, side)).shape == (2, 4)


@pytest.mark.parametrize(
    ("shape", "options", "inputs"),
    [
        ((5, 8, 8), {}, 20),
        ((5, 7, 9), {}, 20),
        ((5, 2, 2), {}, 20),
        ((5, 1, 3), {}, 10),  # not enlarged
        ((5, 8, 8), {"grid": (1, 4)}, 20),
        ((5,), {}, 5),
    ],
)
def test_linear_head(shape, options, inputs):
    head = LinearHead(shape, 4, **options)
    assert linear_sizes(head) == [(inputs, 4)]
    assert head(torch.randn(2, *shape)).shape == (2, 4)


def test_linear_head_averages_quarters_of_the_map():
    head, x = LinearHead((3, 8, 6), 4), torch.randn(2, 3, 8, 6)
    quarters = x.unflatten(2, (2, 4)).unflatten(4, (2, 3)).mean((3, 5))  # (B, C, 2, 2)
    torch.testing.assert_close(head(x), head[-1](quarters.flatten(1)))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("width", [None, 7])
def test_look_ahead_head_counts_its_layers(layers, width):
    head = ConvHead((6, 8, 8), 4, layers=layers, width=width)
    out = width or 6
    assert conv_sizes(head) == [(6, out, 1, 1), (out, out, 1, 1)][: layers - 1]
    assert all(m.kernel_size == (3, 3) and m.bias is None for m in head if isinstance(m, nn.Conv2d))
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * (layers - 1) + [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    assert [type(m) for m in head] == kinds
    assert linear_sizes(head) == [(4 * (out if layers > 1 else 6), 4)]
    assert head(torch.randn(2, 6, 8, 8)).shape == (2, 4)


def test_look_ahead_head_of_one_layer_is_the_linear_head():
    torch.manual_seed(0)
    linear = LinearHead((6, 8, 8), 4)
    torch.manual_seed(0)
    head = ConvHead((6, 8, 8), 4, layers=1)
    x = torch.randn(2, 6, 8, 8)
    assert torch.equal(head(x), linear(x))
    assert linear_sizes(ConvHead((6,), 4, layers=1)) == [(6, 4)]  # of vectors, too


def test_look_ahead_head_refuses_to_have_no_layer():
    with pytest.raises(NetworkError, match="layers must be at least 1, not 0"):
        ConvHead((6, 8, 8), 4, layers=0)


@pytest.mark.parametrize("make", [AuxHead, MLPSRHead, CNNHead, ConvHead])
def test_heads_initialise_their_convolutions(make):
    torch.manual_seed(0)
    for conv in (m for m in make((64, 4, 4), 10) if isinstance(m, nn.Conv2d)):
        expected = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        assert conv.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * conv.weight.numel()))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (AuxHead, "1c2f"),
        (lambda *a: AuxHead(*a, convs=2, fcs=1), "2c1f"),
        (MLPSRHead, "MLPSR"),
        (CNNHead, "CNNHead"),
        (ConvHead, "look-ahead head of 2 layers"),
    ],
)
def test_heads_with_convolutions_refuse_vectors(make, name):
    with pytest.raises(NetworkError, match=rf"{name}.*vectors \(16,\).*convs: 0"):
        make((16,), 10)


@pytest.mark.parametrize("fcs", [0, -1])
def test_aux_head_refuses_to_have_no_linear_layer(fcs):
    with pytest.raises(NetworkError, match="fcs must be at least 1"):
        AuxHead((4, 8, 8), 10, fcs=fcs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_global_average_pool_equals_torchs_with_its_gradient(memory_format):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    weights = torch.randn(3, 4, dtype=torch.float64)
    ours, theirs = GlobalAveragePool()(x), nn.AdaptiveAvgPool2d(1)(x).flatten(1)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_global_average_pool_keeps_the_layout_of_the_gradient():
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.autograd.grad(GlobalAveragePool()(x.relu()).square().sum(), x)[0]
    assert gradient.is_contiguous(memory_format=torch.channels_last)
