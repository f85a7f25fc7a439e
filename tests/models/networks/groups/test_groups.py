"""The width cut, and the heads of all groups against a loop of separate heads."""

from functools import partial

import pytest
import torch
from torch import nn

from experiments.studies.published_loop import own_slice_live
from losses.errors import NetworkError
from models.networks.cut import Cut, cut_chain
from models.networks.groups.cut import end_at_last_map, group_blocks
from models.networks.groups.heads import GroupHeads
from models.networks.heads.classifiers import AuxHead, CNNHead, ConvHead, LinearHead, MLPSRHead
from models.networks.layers.grouped import SharingConv2d
from models.networks.memory.profile import profile
from models.networks.mlp import MLP
from models.networks.resnet import CifarResNet, ResNet
from models.networks.vgg import VGG

PUBLISHED = Cut(by="published")


def count(modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def grouped_resnet(num_blocks, num_groups, width=1, sharing=True):
    chain = CifarResNet((3, 32, 32), 10, 32, [width * w for w in (16, 16, 32, 64)])
    blocks = cut_chain(chain, num_blocks, PUBLISHED, lambda shape: nn.Identity())
    group_blocks(blocks, (3, 32, 32), num_groups, sharing)
    return blocks


# -- published counts -----------------------------------------------------------------------------

PARAMETERS = {
    (1, 1): ".466/.092 .235/.184 .119/.367 .061/.734",
    (1, 2): ".466/.120 .239/.240 .126/.480 .069/.960",
    (1, 4): ".466/.222 .259/.444 .155/.888 .103/1.775",
    (1, 8): ".466/.362 .286/.725 .195/1.449 .150/2.898",
    (1, 16): ".466/.661 .345/1.322 .285/2.644 .255/5.287",
    (2, 1): "1.859/.364 .933/.728 .469/1.455 .237/2.910",
    (2, 2): "1.859/.473 .951/.947 .497/1.893 .270/3.787",
    (2, 4): "1.859/.875 1.029/1.750 .614/3.500 .407/6.999",
    (2, 8): "1.859/1.424 1.136/2.848 .775/5.695 .594/11.391",
    (2, 16): "1.859/2.593 1.375/5.187 1.133/10.374 1.013/20.748",
}
"""(width, K) → trunk / all heads in millions, for G = 1, 2, 4, 8 (GN-DGL method sheet, section 5)."""


@pytest.mark.parametrize(("width", "num_blocks"), PARAMETERS)
def test_parameters_are_the_published_ones(width, num_blocks):
    head = partial(AuxHead, hidden=128 * width)
    with torch.device("meta"):
        shapes = [cost.output_shape for cost, _ in profile(grouped_resnet(num_blocks, 1, width), (3, 32, 32))]
    for groups, cell in zip((1, 2, 4, 8), PARAMETERS[width, num_blocks].split(), strict=True):
        with torch.device("meta"):
            blocks = grouped_resnet(num_blocks, groups, width)
            heads = [GroupHeads(head, shape, 10, groups) for shape in shapes]
        millions = [f"{count(part) / 1e6:.3f}".removeprefix("0") for part in (blocks, heads)]
        assert "/".join(millions) == cell


# -- which convolutions are grouped -----------------------------------------------------------------


def whole_ones(blocks):
    """The convolutions that are not grouped, by block and name; all others have four groups."""
    groups = {
        f"{k}.{name}": layer.groups
        for k, block in enumerate(blocks, start=1)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Conv2d)
    }
    assert set(groups.values()) == {1, 4}
    return {name for name, count in groups.items() if count == 1}


@pytest.mark.parametrize(
    ("num_blocks", "sharing", "whole"),
    [
        (4, True, {"1.stem.0", "2.layer1_3.conv1", "3.layer2_2.conv1", "4.layer3_1.conv1"}),
        (3, True, {"1.stem.0", *(f"{k}.layer{k}_0.{name}" for k in (2, 3) for name in ("conv1", "downsample.0"))}),
        (16, False, {"1.stem.0"}),
    ],
)
def test_what_reads_the_blocks_input_stays_whole_if_groups_share(num_blocks, sharing, whole):
    """The stem always; a shortcut only where it reads the block's input."""
    with torch.device("meta"):
        assert whole_ones(grouped_resnet(num_blocks, 4, sharing=sharing)) == whole


def test_bottlenecks_can_be_grouped():
    with torch.device("meta"):
        chain = ResNet((3, 32, 32), 10, 50, stem="cifar")
        blocks = cut_chain(chain, 4, PUBLISHED, lambda shape: nn.Identity())
        group_blocks(blocks, (3, 32, 32), 4)
        assert nn.Sequential(*blocks)(torch.randn(2, 3, 32, 32)).shape == (2, 2048, 4, 4)
    later = (f"{k}.layer{k}_0.{name}" for k in (2, 3, 4) for name in ("conv1", "downsample.0"))
    assert whole_ones(blocks) == {"1.stem.0", *later}


def test_convolutions_keep_the_spread_of_the_whole_one():
    """He's rule with all output channels, not those of one group."""
    conv = grouped_resnet(1, 4, width=4)[0].layer3_3.conv2
    assert conv.weight.shape == (256, 64, 3, 3)
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)


# -- networks that cannot be grouped ----------------------------------------------------------------


def test_widths_that_groups_do_not_divide():
    with pytest.raises(NetworkError, match=r"3 groups do not divide the 16 channels of stem\.0 of block 1"):
        grouped_resnet(2, 3)


def test_a_network_without_feature_maps():
    with pytest.raises(NetworkError, match="MLP-8 has no feature maps"):
        end_at_last_map(MLP((1, 8, 8), 10, [8]))


def test_a_layer_that_mixes_channels():
    block = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8))
    with pytest.raises(NetworkError, match="1 of block 1 is a GroupNorm"):
        group_blocks([block], (3, 8, 8), 2)


def test_fully_connected_units_become_part_of_the_classifier():
    torch.manual_seed(0)
    chain = VGG((1, 8, 8), 10, [8, "M", 8], hidden=[16, 12]).eval()
    images = torch.randn(2, 1, 8, 8)
    before = chain(images)
    end_at_last_map(chain)
    assert chain.unit_names == ["conv1", "conv2"]
    torch.testing.assert_close(chain(images), before)


# -- the heads of all groups against separate heads ---------------------------------------------------


def particular(feature_shape, num_classes):
    """What a convolution and a BatchNorm may have beside their widths."""
    return nn.Sequential(
        nn.Conv2d(feature_shape[0], 6, (3, 1), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
        nn.BatchNorm2d(6, eps=0.1, momentum=0.5),
        nn.ReLU(),
        nn.Conv2d(6, 4, (3, 1), dilation=2),
        nn.BatchNorm2d(4, affine=False, momentum=None),
        nn.Flatten(),
        nn.Linear(64, num_classes),
    )


HEADS = {
    "1c2f": partial(AuxHead, hidden=12),
    "2c2f": partial(AuxHead, convs=2, hidden=12),
    "1c3f": partial(AuxHead, fcs=3, hidden=12),
    "0c1f": partial(AuxHead, convs=0, fcs=1),
    "0c2f": partial(AuxHead, convs=0, hidden=12),
    "MLP-SR": MLPSRHead,
    "CNN": CNNHead,
    "linear": LinearHead,
    "conv_1": partial(ConvHead, layers=1),
    "conv_2": ConvHead,
    "conv_3": partial(ConvHead, layers=3),
    "particular": particular,
}


def separate(heads, make_head, shape, groups):
    """The same heads one by one, with the weights of the stacked ones."""
    singles = []
    for g in range(groups):
        single = make_head(shape, 5).double()
        for layer, stacked in zip(single, heads, strict=True):
            for name, tensor in layer.state_dict().items():
                if name != "num_batches_tracked":
                    tensor.copy_(stacked.state_dict()[name].chunk(groups)[g].reshape(tensor.shape))
        singles.append(single)
    return singles


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", HEADS)
def test_stacked_heads_equal_separate_ones(kind, groups):
    torch.manual_seed(0)
    shape = (16, 8, 8)
    heads = GroupHeads(HEADS[kind], shape, 5, groups).double()
    singles = separate(heads, HEADS[kind], shape, groups)
    features = torch.randn(6, *shape, dtype=torch.float64, requires_grad=True)
    mixing = torch.randn(6, groups, 5, dtype=torch.float64)

    ours = heads(features)
    (ours.sin() * mixing).sum().backward()
    grad, features.grad = features.grad, None
    theirs = torch.stack([head(own_slice_live(features, g, groups)) for g, head in enumerate(singles)], dim=1)
    (theirs.sin() * mixing).sum().backward()

    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grad, features.grad)
    for layer, *others in zip(heads, *singles, strict=True):
        for name, parameter in layer.named_parameters():
            parts = torch.stack([dict(other.named_parameters())[name].grad for other in others])
            torch.testing.assert_close(parameter.grad.reshape(parts.shape), parts)
        for name, buffer in layer.named_buffers():
            if name != "num_batches_tracked":
                parts = torch.cat([dict(other.named_buffers())[name] for other in others])
                torch.testing.assert_close(buffer, parts)


def normalising_head(feature_shape, num_classes, hidden):
    """An AuxHead with BatchNorm between its hidden layers."""
    layers = list(AuxHead(feature_shape, num_classes, fcs=3, hidden=hidden))
    return nn.Sequential(*layers[:5], nn.BatchNorm1d(hidden), *layers[5:])


@pytest.mark.parametrize(("groups", "hidden", "thin"), [(2, 8, 4), (4, 8, 2), (4, 11, 2)])
@pytest.mark.parametrize("kind", [partial(AuxHead, fcs=3), normalising_head], ids=["1c3f", "normalising"])
def test_heads_on_slices_are_thin_heads(kind, groups, hidden, thin):
    """Without sharing: head g is one of 1/G of the width on slice g, rounded down."""
    torch.manual_seed(0)
    heads = GroupHeads(partial(kind, hidden=hidden), (16, 8, 8), 5, groups, sharing=False).double()
    thin = partial(kind, hidden=thin)
    singles = separate(heads, thin, (16 // groups, 8, 8), groups)
    features = torch.randn(6, 16, 8, 8, dtype=torch.float64)
    theirs = torch.stack([head(part) for head, part in zip(singles, features.chunk(groups, 1), strict=True)], dim=1)
    torch.testing.assert_close(heads(features), theirs)


def test_every_head_is_drawn_with_its_own_widths():
    torch.manual_seed(0)
    heads = GroupHeads(AuxHead, (64, 8, 8), 10, 8)
    single = AuxHead((64, 8, 8), 10)
    assert heads[0].weight.std().item() == pytest.approx(single[0].weight.std().item(), rel=0.02)
    for i in (4, 6):
        assert heads[i].weight.std().item() == pytest.approx(single[i].weight.std().item(), rel=0.05)
        assert heads[i].weight.abs().max().item() <= single[i].in_features ** -0.5


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (32, 8), (64, 8), (32, 2), (48, 6)])
def test_thin_groups_are_merged_without_a_difference(channels, groups):
    """float32 and channels-last, as in training: the gradient of the input is that of detached copies."""
    torch.manual_seed(0)
    conv = SharingConv2d(channels, 4 * groups, (3, 3), (2, 2), (1, 1), groups)
    nn.init.normal_(conv.weight)
    x = torch.randn(4, channels, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(4, 4 * groups, 4, 4)
    ours = torch.autograd.grad(conv(x), x, gradient)
    parts = [
        nn.functional.conv2d(own_slice_live(x, g, groups), weight, stride=2, padding=1)
        for g, weight in enumerate(conv.weight.chunk(groups))
    ]
    torch.testing.assert_close(ours, torch.autograd.grad(torch.cat(parts, 1), x, gradient), rtol=1e-4, atol=1e-4)


def test_stacked_heads_are_as_exact_in_bfloat16_as_separate_ones():
    torch.manual_seed(0)
    heads = GroupHeads(AuxHead, (16, 8, 8), 5, 4)
    singles = [single.float() for single in separate(heads, AuxHead, (16, 8, 8), 4)]
    features = torch.randn(32, 16, 8, 8, requires_grad=True)
    mixing = torch.randn(32, 4, 5)

    def loop(x):
        return torch.stack([head(own_slice_live(x, g, 4)) for g, head in enumerate(singles)], dim=1)

    def gradient(compute, precision):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = compute(features)
        return torch.autograd.grad((logits.float() * mixing).sum(), features)[0]

    exact = gradient(loop, "float32")
    ours, theirs = ((gradient(compute, "bf16") - exact).norm() for compute in (heads, loop))
    assert 0 < ours < 1.2 * theirs
    with torch.autocast("cpu", torch.bfloat16):
        logits = heads(features)
    logits.float().sum().backward()
    assert features.grad.dtype == heads[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(16), nn.PReLU()], ids=["BatchNorm2d", "PReLU"])
def test_heads_that_cannot_be_stacked(layer):
    def head(feature_shape, num_classes):
        return nn.Sequential(layer, *AuxHead(feature_shape, num_classes))

    with pytest.raises(NetworkError, match=f"A head with a {type(layer).__name__} cannot be computed for several"):
        GroupHeads(head, (16, 8, 8), 10, 2)


@pytest.mark.parametrize("option", [{"padding_mode": "reflect"}, {"padding": "same"}, {"groups": 2}], ids=str)
def test_convolutions_that_groups_cannot_share(option):
    conv = nn.Conv2d(16, 8, 3, **{"padding": 1, **option})

    def head(feature_shape, num_classes):
        return nn.Sequential(conv, nn.Flatten(), nn.Linear(512, num_classes))

    with pytest.raises(NetworkError, match=r"cannot share Conv2d.*: it must have no groups of its own, and numbers"):
        GroupHeads(head, (16, 8, 8), 10, 2)
    blocks = [nn.Sequential(nn.Conv2d(3, 16, 3)), nn.Sequential(nn.BatchNorm2d(16), conv)]
    with pytest.raises(NetworkError, match="cannot share Conv2d"):
        group_blocks(blocks, (3, 8, 8), 2)


def test_head_widths_that_groups_do_not_divide():
    with pytest.raises(NetworkError, match="4 groups do not divide the head's width 10"):
        GroupHeads(CNNHead, (10, 8, 8), 10, 4, sharing=False)
    with pytest.raises(NetworkError, match="3 units are too few for 4 groups"):
        GroupHeads(partial(AuxHead, hidden=3), (16, 8, 8), 10, 4, sharing=False)
