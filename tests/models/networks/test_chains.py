"""Networks as chains of units: shapes, names, sizes, initialisation, what cannot be built."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.networks.cut import block_shapes
from models.networks.mlp import MLP
from models.networks.resnet import CifarResNet, ResNet
from models.networks.vgg import VGG, VGG16, VGG6a, VGG8b, VGG11b

CIFAR, DIGITS = (3, 32, 32), (1, 28, 28)


def count(module):
    return sum(p.numel() for p in module.parameters())


def on_meta(make, *args, **kwargs):
    with torch.device("meta"):
        return make(*args, **kwargs)


@pytest.mark.parametrize(
    ("make", "image_shape", "name", "shapes"),
    [
        (partial(MLP, hidden=(7, 5)), (1, 6, 4), "MLP-7-5", {"fc1": (7,), "fc2": (5,)}),
        (
            partial(VGG, plan=(4, "M", 6, 8, "M"), hidden=(9,)),
            (3, 8, 13),
            "VGG",
            {"conv1": (4, 4, 6), "conv2": (6, 4, 6), "conv3": (8, 2, 3), "fc1": (9,)},
        ),
        (partial(VGG, plan=(4, "M") * 4), (3, 16, 16), "VGG", {"conv4": (4, 1, 1)}),
        (partial(VGG8b, width=1 / 32), DIGITS, "VGG8b×0.03125", {"conv6": (16, 1, 1), "fc1": (32,)}),
        (
            partial(CifarResNet, depth=20),
            CIFAR,
            "ResNet-20",
            {"stem": (16, 32, 32), "layer1_2": (16, 32, 32), "layer2_0": (32, 16, 16), "layer3_2": (64, 8, 8)},
        ),
        (
            partial(CifarResNet, depth=20, widths=[32, 32, 64, 128]),
            DIGITS,
            "ResNet-20×2",
            {"layer2_2": (64, 14, 14), "layer3_2": (128, 7, 7)},
        ),
        (
            partial(ResNet, depth=50),
            (3, 64, 96),
            "ResNet-50",
            {"stem": (64, 16, 24), "layer1_2": (256, 16, 24), "layer3_5": (1024, 4, 6), "layer4_2": (2048, 2, 3)},
        ),
        (
            partial(ResNet, depth=18, stem="cifar", widths=[32, 64, 128, 256]),
            CIFAR,
            "ResNet-18×0.5 (CIFAR stem)",
            {"stem": (32, 32, 32), "layer1_1": (32, 32, 32), "layer2_0": (64, 16, 16), "layer4_1": (256, 4, 4)},
        ),
    ],
)
def test_names_and_shapes_of_a_networks_units(make, image_shape, name, shapes):
    chain = on_meta(make, image_shape, 11)
    assert (chain.name, chain.image_shape) == (name, image_shape)
    found = dict(zip(chain.unit_names, block_shapes(chain, chain.units), strict=True))
    assert {unit: found[unit] for unit in shapes} == shapes
    assert list(shapes)[-1] == chain.unit_names[-1]
    assert chain(torch.empty(3, *image_shape, device="meta")).shape == (3, 11)


def test_layers_of_a_unit():
    chain = on_meta(VGG, (3, 8, 8), 10, plan=(4, "M", 6), hidden=(5, 5), dropout=0.25)
    convolution, linear = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU], [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert {name: [type(m) for m in unit] for name, unit in chain.units.named_children()} == {
        "conv1": [*convolution, nn.MaxPool2d, nn.Dropout],
        "conv2": [*convolution, nn.Dropout],
        "fc1": [nn.Flatten, *linear, nn.Dropout],
        "fc2": [*linear, nn.Dropout],
    }
    assert {m.p for m in chain.modules() if isinstance(m, nn.Dropout)} == {0.25}
    assert count(on_meta(MLP, (1, 2, 3), 4, hidden=(5, 5))) == 6 * 5 + 10 + 5 * 5 + 10 + (5 + 1) * 4
    plain = on_meta(MLP, (1, 2, 3), 4, hidden=(5,), batch_norm=False)
    assert [type(m) for m in plain.units.fc1] == [nn.Flatten, nn.Linear, nn.ReLU]
    assert count(plain) == (6 + 1) * 5 + (5 + 1) * 4


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_resnets_have_the_published_size(depth, millions):
    # The paper pads shortcuts with zeros; learned ones add 2,752 parameters.
    published = count(on_meta(CifarResNet, CIFAR, 10, depth=depth)) - 2_752
    assert published == pytest.approx(millions * 1e6, abs=0.04e6 if depth == 110 else 0.005e6)


@pytest.mark.parametrize(("factor", "parameters"), [(1, 466_256), (2, 1_859_232)])
def test_resnet32_has_the_published_trunk(factor, parameters):
    widths = [factor * width for width in (16, 16, 32, 64)]
    assert count(on_meta(CifarResNet, CIFAR, 10, depth=32, widths=widths).units) == parameters


@pytest.mark.parametrize(
    ("make", "widths", "features", "hidden"),
    [
        (VGG6a, [128, 256, 512, 512], 512 * 4 * 4, 1024),
        (VGG8b, [128, 256, 256, 512, 512, 512], 512 * 2 * 2, 1024),
        (VGG11b, [128, 128, 128, 256, 256, 512, 512, 512, 512], 512 * 2 * 2, 1024),
        (VGG16, [64, 64, 128, 128, *[256] * 3, *[512] * 6], 512, 512),
    ],
)
def test_units_and_parameter_counts_of_the_vggs(make, widths, features, hidden):
    """Convolutions and hidden layer without bias, two BatchNorm parameters per channel, classifier."""
    chain = on_meta(make, CIFAR, 10)
    assert chain.unit_names == [*(f"conv{i}" for i in range(1, len(widths) + 1)), "fc1"]
    convolutions = sum(9 * a * b + 2 * b for a, b in zip([3, *widths], widths, strict=False))
    assert count(chain) == convolutions + features * hidden + 2 * hidden + (hidden + 1) * 10


def test_vgg_width_scales_channels_and_hidden_layers():
    half = on_meta(VGG, (3, 8, 8), 10, plan=(8, "M", 12), hidden=(20,), width=0.5)
    by_hand = on_meta(VGG, (3, 8, 8), 10, plan=(4, "M", 6), hidden=(10,))
    assert [p.shape for p in half.parameters()] == [p.shape for p in by_hand.parameters()]


@pytest.mark.parametrize("make", [VGG, MLP, VGG8b])
def test_leaky_relus_by_their_slope(make):
    plain, leaky = on_meta(make, (3, 16, 16), 10), on_meta(make, (3, 16, 16), 10, negative_slope=0.01)
    kinds = [nn.LeakyReLU if isinstance(m, nn.ReLU) else type(m) for m in plain.modules()]
    assert [type(m) for m in leaky.modules()] == kinds
    assert {(m.negative_slope, m.inplace) for m in leaky.modules() if isinstance(m, nn.LeakyReLU)} == {(0.01, True)}


@pytest.mark.parametrize(
    "make",
    [partial(CifarResNet, depth=20), partial(VGG, plan=(64, 96, "M", 32)), partial(ResNet, depth=18)],
)
def test_convolutions_start_with_kaiming_fan_out_std(make):
    torch.manual_seed(0)
    convolutions = [m for m in make(CIFAR, 10).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) >= 3
    for conv in convolutions:
        expected = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        five_standard_errors = 5 / math.sqrt(2 * conv.weight.numel())
        assert conv.weight.std().item() == pytest.approx(expected, rel=five_standard_errors)


@pytest.mark.parametrize(("depth", "channels", "last"), [(18, 8, "bn2"), (50, 32, "bn3")])
def test_zero_init_residual_makes_blocks_start_as_identity(depth, channels, last):
    network = ResNet(CIFAR, 10, depth=depth, zero_init_residual=True, widths=[8, 8, 8, 8])
    block, x = network.units.layer1_1, torch.rand(2, channels, 4, 4)
    assert torch.equal(block(x), x)
    scales = {name: m.weight for name, m in block.named_children() if isinstance(m, nn.BatchNorm2d)}
    assert [name for name, scale in scales.items() if not scale.any()] == [last]


def test_an_mlp_without_hidden_layers_classifies_pixels():
    network = MLP((1, 8, 8), 10, hidden=(), input_dropout=0.5)
    assert network.unit_names == ["pixels"]
    assert [*dict(network.named_parameters())] == ["classifier.weight", "classifier.bias"]
    x = torch.ones(4, 1, 8, 8)
    assert network.units(x).unique().tolist() == [0.0, 2.0]
    torch.testing.assert_close(network.eval()(x), network.classifier(torch.ones(4, 64)))


@pytest.mark.parametrize(
    ("make", "image_shape", "fault"),
    [
        *[(partial(CifarResNet, depth=d), CIFAR, rf"6n \+ 2 .*not {d}\.") for d in (2, 21, 31, 33, 0, -4)],
        (partial(CifarResNet, depth=20, widths=(16, 32, 64)), CIFAR, "stem and three stages"),
        (partial(ResNet, depth=19), CIFAR, "depth 18, 34, 50, 101, not 19"),
        (partial(ResNet, depth=18, widths=(16, 16, 32, 64, 128)), CIFAR, "four stages"),
        *[(partial(VGG, plan=plan), CIFAR, "starts with a convolution") for plan in ((), ("M", 8), ("M",))],
        (partial(VGG, plan=(8, "M", "M", 8)), CIFAR, "two M in a row"),
        (partial(VGG, plan=(4, "M") * 4), (3, 8, 16), "VGG halves the image 4 times, too often for 8×16 pixels"),
        (VGG16, DIGITS, "VGG16 halves the image 5 times"),
    ],
)
def test_networks_that_cannot_be_built(make, image_shape, fault):
    with pytest.raises(NetworkError, match=fault):
        on_meta(make, image_shape, 10)
