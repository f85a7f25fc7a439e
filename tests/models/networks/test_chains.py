"""Networks as chains of units: shapes, names, sizes, initialisation, what cannot be built."""

import math

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.networks.chain import initialise_convolutions
from models.networks.memory.profile import profile
from models.networks.mlp import MLP
from models.networks.resnet import CifarResNet, ResNet
from models.networks.vgg import VGG, VGG16, VGG6a, VGG8b, VGG11b


def count(module):
    return sum(p.numel() for p in module.parameters())


def on_meta(make, *args, **kwargs):
    with torch.device("meta"):
        return make(*args, **kwargs)


def logits_shape(chain, batch=3):
    return tuple(chain(torch.empty(batch, *chain.image_shape, device="meta")).shape)


@pytest.mark.parametrize(
    ("make", "kwargs", "image_shape"),
    [
        (MLP, {"hidden": (7, 5)}, (1, 6, 4)),
        (MLP, {"hidden": (7,), "batch_norm": False, "dropout": 0.5}, (3, 4, 4)),
        (VGG, {"plan": (4, "M", 6, 8, "M")}, (3, 8, 12)),
        (VGG, {"plan": (4, 6, "M"), "hidden": (9, 7), "dropout": 0.1}, (1, 7, 7)),
        (VGG6a, {"width": 1 / 32}, (3, 32, 32)),
        (VGG8b, {"width": 1 / 32}, (3, 32, 32)),
        (VGG8b, {"width": 1 / 32}, (1, 28, 28)),
        (VGG11b, {"width": 1 / 32}, (3, 32, 32)),
        (VGG16, {"width": 1 / 32}, (3, 32, 32)),
        *[(CifarResNet, {"depth": depth}, (3, 32, 32)) for depth in (20, 32, 44, 56, 110)],
        (CifarResNet, {"depth": 20, "widths": [32, 32, 64, 128]}, (1, 28, 28)),
        *[(ResNet, {"depth": d, "stem": s}, (3, 64, 64)) for d in (18, 34, 50, 101) for s in ("imagenet", "cifar")],
    ],
)
def test_every_network_turns_images_into_logits(make, kwargs, image_shape):
    chain = on_meta(make, image_shape, 11, **kwargs)
    assert logits_shape(chain) == (3, 11)
    assert chain.image_shape == image_shape


def test_forward_is_the_units_and_then_the_classifier():
    chain = VGG((3, 8, 8), 5, plan=(4, "M", 6), hidden=(7,)).eval()
    x = images = torch.randn(2, 3, 8, 8)
    for unit in chain.units:
        x = unit(x)
    assert torch.equal(chain(images), chain.classifier(x))


def test_unit_names():
    assert on_meta(MLP, (1, 8, 8), 10, hidden=(4, 4, 4)).unit_names == ["fc1", "fc2", "fc3"]
    assert on_meta(VGG, (3, 8, 8), 10, plan=(4, 4, "M", 4), hidden=(4,)).unit_names == [
        "conv1",
        "conv2",
        "conv3",
        "fc1",
    ]
    assert on_meta(VGG6a, (3, 32, 32), 10).unit_names == [*(f"conv{i}" for i in range(1, 5)), "fc1"]
    assert on_meta(VGG8b, (3, 32, 32), 10).unit_names == [*(f"conv{i}" for i in range(1, 7)), "fc1"]
    assert on_meta(VGG11b, (3, 32, 32), 10).unit_names == [*(f"conv{i}" for i in range(1, 10)), "fc1"]
    assert on_meta(VGG16, (3, 32, 32), 10).unit_names == [*(f"conv{i}" for i in range(1, 14)), "fc1"]
    residual = [f"layer{stage}_{block}" for stage in (1, 2, 3) for block in range(5)]
    assert on_meta(CifarResNet, (3, 32, 32), 10, depth=32).unit_names == ["stem", *residual]
    residual = [f"layer{stage}_{block}" for stage, n in enumerate((3, 4, 6, 3), start=1) for block in range(n)]
    assert on_meta(ResNet, (3, 64, 64), 10, depth=50).unit_names == ["stem", *residual]


def test_titles():
    titles = [
        on_meta(MLP, (1, 8, 8), 10, hidden=(16, 32)).name,
        on_meta(VGG8b, (3, 32, 32), 10).name,
        on_meta(VGG8b, (3, 32, 32), 10, width=0.5).name,
        on_meta(CifarResNet, (3, 32, 32), 10, depth=32).name,
        on_meta(CifarResNet, (3, 32, 32), 10, depth=32, widths=(32, 32, 64, 128)).name,
        on_meta(ResNet, (3, 64, 64), 10, depth=50).name,
        on_meta(ResNet, (3, 64, 64), 10, depth=18, stem="cifar").name,
    ]
    networks = ["MLP-16-32", "VGG8b", "VGG8b×0.5", "ResNet-32", "ResNet-32×2", "ResNet-50", "ResNet-18 (CIFAR stem)"]
    assert titles == networks


@pytest.mark.parametrize(("stem", "halvings"), [("imagenet", 5), ("cifar", 3)])
def test_stems_halve_the_image_as_often_as_published(stem, halvings):
    chain = on_meta(ResNet, (3, 64, 96), 10, depth=18, stem=stem)
    features = chain.units(torch.empty(1, *chain.image_shape, device="meta"))
    assert features.shape == (1, 512, 64 >> halvings, 96 >> halvings)


def test_cifar_resnet_stages_have_strides_1_2_2():
    chain = on_meta(CifarResNet, (3, 32, 32), 10, depth=20)
    x, shapes = torch.empty(1, 3, 32, 32, device="meta"), {}
    for name, unit in chain.units.named_children():
        x = unit(x)
        shapes[name] = tuple(x.shape[1:])
    assert shapes["stem"] == shapes["layer1_2"] == (16, 32, 32)
    assert shapes["layer2_0"] == shapes["layer2_2"] == (32, 16, 16)
    assert shapes["layer3_0"] == shapes["layer3_2"] == (64, 8, 8)


def test_vgg_pools_in_the_unit_before_the_m():
    chain = on_meta(VGG, (3, 16, 16), 10, plan=(4, "M", 6, 8, "M"))
    x, sides = torch.empty(2, 3, 16, 16, device="meta"), []
    for unit in chain.units:
        x = unit(x)
        sides.append(x.shape[-1])
    assert sides == [8, 8, 4]


def test_vgg_layers_of_a_unit():
    chain = on_meta(VGG, (3, 8, 8), 10, plan=(4, "M", 6), hidden=(5, 5), dropout=0.25)
    convolution, linear = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU], [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert {name: [type(m) for m in unit] for name, unit in chain.units.named_children()} == {
        "conv1": [*convolution, nn.MaxPool2d, nn.Dropout],
        "conv2": [*convolution, nn.Dropout],
        "fc1": [nn.Flatten, *linear, nn.Dropout],
        "fc2": [*linear, nn.Dropout],
    }
    assert {m.p for m in chain.modules() if isinstance(m, nn.Dropout)} == {0.25}


def test_parameter_counts_of_the_published_trunks():
    assert count(on_meta(CifarResNet, (3, 32, 32), 10, depth=32).units) == 466_256
    assert count(on_meta(CifarResNet, (3, 32, 32), 10, depth=32, widths=(32, 32, 64, 128)).units) == 1_859_232
    assert count(on_meta(ResNet, (3, 224, 224), 1000, depth=50).units) == 23_508_032


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_resnets_have_the_published_size(depth, millions):
    # The paper pads shortcuts with zeros; learned ones add 2,752 parameters.
    published = count(on_meta(CifarResNet, (3, 32, 32), 10, depth=depth)) - 2_752
    assert published == pytest.approx(millions * 1e6, abs=0.04e6 if depth == 110 else 0.005e6)


def vgg_parameters(widths, features, hidden, classes, channels=3):
    """Convolutions and hidden layer without bias, two BatchNorm parameters per channel, classifier."""
    convs = sum(9 * a * b + 2 * b for a, b in zip([channels, *widths], widths, strict=False))
    return convs + features * hidden + 2 * hidden + (hidden + 1) * classes


@pytest.mark.parametrize(
    ("make", "widths", "features", "hidden"),
    [
        (VGG6a, [128, 256, 512, 512], 512 * 4 * 4, 1024),
        (VGG8b, [128, 256, 256, 512, 512, 512], 512 * 2 * 2, 1024),
        (VGG11b, [128, 128, 128, 256, 256, 512, 512, 512, 512], 512 * 2 * 2, 1024),
        (VGG16, [64, 64, 128, 128, *[256] * 3, *[512] * 6], 512, 512),
    ],
)
def test_parameter_counts_of_the_vggs(make, widths, features, hidden):
    assert count(on_meta(make, (3, 32, 32), 10)) == vgg_parameters(widths, features, hidden, 10)


def test_vgg_width_scales_channels_and_hidden_layers():
    half, by_hand = (
        on_meta(VGG, (3, 8, 8), 10, plan=(8, "M", 12), hidden=(20,), width=0.5),
        on_meta(VGG, (3, 8, 8), 10, plan=(4, "M", 6), hidden=(10,)),
    )
    assert [p.shape for p in half.parameters()] == [p.shape for p in by_hand.parameters()]


def test_mlp_structure_with_and_without_batch_norm():
    plain = MLP((1, 2, 3), 4, hidden=(5,), batch_norm=False)
    assert [type(m) for m in plain.units.fc1] == [nn.Flatten, nn.Linear, nn.ReLU]
    assert count(plain) == (6 + 1) * 5 + (5 + 1) * 4
    normed = MLP((1, 2, 3), 4, hidden=(5, 5), dropout=0.1)
    assert [type(m) for m in normed.units.fc2] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert count(normed) == 6 * 5 + 10 + 5 * 5 + 10 + (5 + 1) * 4


@pytest.mark.parametrize("make", [VGG, MLP, VGG8b])
def test_leaky_relus_by_their_slope(make):
    image = (3, 16, 16)
    plain, leaky = on_meta(make, image, 10), on_meta(make, image, 10, negative_slope=0.01)
    kinds = [nn.LeakyReLU if isinstance(m, nn.ReLU) else type(m) for m in plain.modules()]
    assert [type(m) for m in leaky.modules()] == kinds
    assert nn.LeakyReLU in kinds
    assert all(m.negative_slope == 0.01 and m.inplace for m in leaky.modules() if isinstance(m, nn.LeakyReLU))
    macs = [[cost.forward_macs for cost, _ in profile(list(chain.units), image)] for chain in (plain, leaky)]
    assert macs[0] == macs[1]


@pytest.mark.parametrize(
    ("make", "kwargs"),
    [(CifarResNet, {"depth": 20}), (VGG, {"plan": (64, 96, "M", 32)}), (ResNet, {"depth": 18})],
)
def test_convolutions_start_with_kaiming_fan_out_std(make, kwargs):
    torch.manual_seed(0)
    convolutions = [m for m in make((3, 32, 32), 10, **kwargs).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) >= 3
    for conv in convolutions:
        expected = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        five_standard_errors = 5 / math.sqrt(2 * conv.weight.numel())
        assert conv.weight.std().item() == pytest.approx(expected, rel=five_standard_errors)


def test_grouped_convolutions_start_with_the_std_of_the_full_width():
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, groups=4)
    initialise_convolutions(conv)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)


def test_zero_init_residual_makes_blocks_start_as_identity():
    for depth, channels, last in ((18, 64, "bn2"), (50, 256, "bn3")):
        block = ResNet((3, 32, 32), 10, depth=depth, zero_init_residual=True).units.layer1_1
        x = torch.rand(2, channels, 4, 4)
        assert torch.equal(block(x), x)
        scales = {name: m.weight for name, m in block.named_children() if isinstance(m, nn.BatchNorm2d)}
        assert [name for name, scale in scales.items() if not scale.any()] == [last]


@pytest.mark.parametrize("depth", [2, 21, 31, 33, 0, -4])
def test_cifar_resnet_refuses_a_depth_that_is_not_6n_plus_2(depth):
    with pytest.raises(NetworkError, match=rf"6n \+ 2 .*not {depth}\."):
        CifarResNet((3, 32, 32), 10, depth=depth)


@pytest.mark.parametrize("widths", [(16, 32, 64), (16, 16, 32, 64, 128)])
def test_cifar_resnet_refuses_other_than_four_widths(widths):
    with pytest.raises(NetworkError, match="stem and three stages"):
        CifarResNet((3, 32, 32), 10, depth=20, widths=widths)


@pytest.mark.parametrize("plan", [(), ("M", 8), ("M",)])
def test_vgg_refuses_a_plan_without_a_convolution_first(plan):
    with pytest.raises(NetworkError, match="starts with a convolution"):
        VGG((3, 8, 8), 10, plan=plan)


def test_vgg_refuses_to_pool_more_often_than_the_image_can_be_halved():
    plan = (4, "M") * 4
    with pytest.raises(NetworkError, match="VGG halves the image 4 times, too often for 8×16 pixels"):
        VGG((3, 8, 16), 10, plan=plan)
    assert logits_shape(on_meta(VGG, (3, 16, 16), 10, plan=plan)) == (3, 10)
    with pytest.raises(NetworkError, match="VGG16 halves the image 5 times"):
        VGG16((1, 28, 28), 10, width=1 / 32)


def test_mlp_refuses_to_have_no_hidden_layer():
    with pytest.raises(NetworkError, match="at least one hidden layer"):
        MLP((1, 8, 8), 10, hidden=())


def test_vgg_refuses_to_pool_twice_in_a_row():
    with pytest.raises(NetworkError, match="two M in a row"):
        VGG((3, 16, 16), 10, (8, "M", "M", 8))
