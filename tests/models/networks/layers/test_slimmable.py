"""Slimmable networks: every width is the plain network of its slices, in outputs, gradients and statistics."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.networks.chain import Chain
from models.networks.layers.pruned import PrunedConv2d
from models.networks.layers.slimmable import Slimmable, SwitchableBatchNorm, Width, first_channels
from models.networks.mlp import MLP
from models.networks.resnet import CifarResNet, ResNet
from models.networks.slimmed import EveryWidth, narrowed, require_all_widths, slim
from models.networks.vgg import VGG

SHAPE = (3, 8, 8)
WIDTHS = (1.0, 0.5, 0.3)
NETWORKS = {
    "VGG": partial(VGG, plan=[10, "M", 20, 20]),
    "VGG with a hidden layer": partial(VGG, plan=[10, "M", 20], hidden=[10]),
    "CIFAR ResNet": partial(CifarResNet, depth=8, widths=[30, 30, 60, 60]),
    "basic blocks": partial(ResNet, depth=18, stem="cifar", widths=[10, 10, 20, 20]),
    "bottlenecks": partial(ResNet, depth=50, stem="imagenet", zero_init_residual=True, widths=[4, 4, 8, 8]),
    "MLP": partial(MLP, hidden=[10, 20]),
}


def made(network="VGG"):
    """A slimmable network whose BatchNorm layers differ from each other, and are no identities."""
    torch.manual_seed(0)
    width = Width(WIDTHS)
    chain = NETWORKS[network](SHAPE, 7)
    slim(chain.units, width, reads_all=True)
    chain.classifier = slim(chain.classifier, width, gives_all=True)
    for layer in chain.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 1.5)
    return chain, width


def images(count=6):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_width_is_the_plain_network_of_its_slices(network, training):
    chain, width = made(network)
    for share in WIDTHS:
        plain = narrowed(chain, share).train(training)
        assert not any(isinstance(layer, Slimmable | SwitchableBatchNorm) for layer in plain.modules())
        with width.at(share):
            torch.testing.assert_close(chain.train(training)(images()), plain(images()))
        of_the_width = narrowed(chain, share).state_dict()
        for name, value in plain.state_dict().items():  # the statistics moved alike
            torch.testing.assert_close(of_the_width[name], value)
    assert width.now == 1


def test_slices_are_the_first_channels_and_the_stem_and_the_last_layer_are_whole():
    chain, _ = made()
    plain = narrowed(chain, 0.3)
    stem, second = chain.units.conv1[0].weight, chain.units.conv2[0].weight
    assert torch.equal(plain.units.conv1[0].weight, stem[:3])
    assert torch.equal(plain.units.conv2[0].weight, second[:6, :3])
    classifier = chain.classifier[1]  # of 20 channels of 4 × 4 pixels
    assert torch.equal(plain.classifier[1].weight, classifier.weight[:, : 6 * 16])
    assert torch.equal(plain.classifier[1].bias, classifier.bias)


@pytest.mark.parametrize("network", ["VGG", "CIFAR ResNet"])
@pytest.mark.parametrize("share", WIDTHS)
def test_gradients_stay_within_the_slices_and_are_the_plain_networks(network, share):
    chain, width = made(network)
    plain = narrowed(chain, share)
    with width.at(share):
        chain(images()).square().mean().backward()
    plain(images()).square().mean().backward()
    inside = copy.deepcopy(chain)
    for layer in chain.modules():
        if isinstance(layer, Slimmable):
            outside = layer.weight.grad.clone()
            outside[layer.prefix(share)] = 0
            assert not outside.any()
            if layer.bias is not None:
                assert not layer.bias.grad[layer.prefix(share)[0].stop :].any()
    for layer, source in zip(inside.modules(), chain.modules(), strict=True):  # gradients in the weights' place
        for parameter, other in zip(layer.parameters(recurse=False), source.parameters(recurse=False), strict=True):
            parameter.data = torch.zeros_like(other) if other.grad is None else other.grad
    gradients = dict(narrowed(inside, share).named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_convolution_keeps_its_settings(share):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2, padding_mode="reflect", bias=False)
    width = Width([1.0, 0.5])
    slimmable = slim(conv, width, reads_all=True)
    with width.at(share):
        torch.testing.assert_close(slimmable(images()), conv(images())[:, : int(8 * share)])
    torch.testing.assert_close(narrowed(slimmable, share)(images()), conv(images())[:, : int(8 * share)])


def test_a_width_moves_the_statistics_of_its_own_batch_norm_alone():
    chain, width = made()
    before = copy.deepcopy(chain.state_dict())
    with width.at(0.5):
        chain.train()(images())
    moved = {name.split("norms.")[1][0] for name, value in chain.state_dict().items() if not value.equal(before[name])}
    assert moved == {"1"}


def test_narrow_batch_norm_begins_as_the_first_channels_of_the_plain_one():
    unit = ResNet(SHAPE, 7, depth=18, stem="cifar", zero_init_residual=True, widths=[8, 8, 8, 8]).units.layer1_0
    unit.bn1.momentum, unit.bn1.eps = 0.2, 1e-3
    nn.init.uniform_(unit.bn1.weight)
    weight = unit.bn1.weight.detach().clone()
    slim(unit, Width([1.0, 0.5]))
    assert torch.equal(unit.bn1.norms[1].weight, weight[:4])
    assert (unit.bn1.norms[1].momentum, unit.bn1.norms[1].eps) == (0.2, 1e-3)
    assert not unit.bn2.norms[1].weight.any()


def test_batch_norm_without_scale_and_shift_has_none_at_any_width():
    head = slim(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4, affine=False)), Width([1.0, 0.5]), gives_all=True)
    assert [norm.running_mean.shape for norm in head[1].norms] == [(4,), (4,)]
    assert not [*head[1].parameters()]


def test_batch_norm_behind_the_last_layer_is_whole():
    head = slim(
        nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 6), nn.BatchNorm1d(6)),
        Width([1.0, 0.5]),
        gives_all=True,
    )
    assert [norm.num_features for norm in head[1].norms] == [4, 2]
    assert [norm.num_features for norm in head[3].norms] == [6, 6]


def test_slimming_changes_no_weight_and_draws_nothing():
    torch.manual_seed(3)
    plain = VGG(SHAPE, 7, plan=[8, 8])
    weights = [p.detach().clone() for p in plain.parameters()]
    state = torch.get_rng_state()
    slim(plain.units, Width([1.0]), reads_all=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), weights, strict=True))


def test_a_copy_has_a_width_of_its_own_and_a_width_is_left_after_a_fault():
    chain, width = made()
    other = copy.deepcopy(chain)
    with width.at(0.5):
        whole = {layer.width.now for layer in other.modules() if isinstance(layer, Slimmable)}
        assert whole == {1.0}
    with pytest.raises(ZeroDivisionError), width.at(0.3):
        raise ZeroDivisionError
    assert width.now == 1


def test_a_width_within_another_leaves_that_as_it_was():
    width = Width(WIDTHS)
    with width.at(0.5):
        with width.at(0.3):
            assert width.now == 0.3
        assert width.now == 0.5


def test_all_widths_run_one_after_the_other():
    chain, width = made()
    units, classifier = EveryWidth(chain.units.eval(), width), EveryWidth(chain.classifier, width)
    outputs = classifier(units(images()))
    for share, logits in zip(reversed(WIDTHS), outputs, strict=True):
        with width.at(share):
            assert torch.equal(logits, chain(images()))


@pytest.mark.parametrize("widths", [[], [0.5, 0.25], [1.0, 0.5, 0.5], [1.0, 0.25, 0.5], [1.0, 0.0], [1.0, -0.5]])
def test_widths_that_do_not_fall_from_the_whole_are_refused(widths):
    with pytest.raises(NetworkError, match=r"begin with 1\.0 and fall"):
        Width(widths)


def test_shares_of_channels():
    assert [first_channels(0.29, 100), first_channels(0.25, 10), first_channels(1.0, 7)] == [29, 2, 7]
    with pytest.raises(NetworkError, match=r"At width 0\.1 a layer of 8 channels would have none"):
        slim(nn.Linear(16, 8), Width([1.0, 0.1]))
    with pytest.raises(NetworkError, match=r"has widths \[1.0, 0.5\], and not 0.25"), Width([1.0, 0.5]).at(0.25):
        pass


class Padded(nn.Module):
    """A residual block with the shortcut without parameters: every second pixel, and channels of zeros."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.more = nn.Conv2d(channels, 2 * channels, 3, 2, 1), channels

    def forward(self, x):
        return self.conv(x) + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.more))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(8, 8, 3, groups=2), "has groups of channels"),
        (PrunedConv2d(8, 8, 3, pruned=0.5), "A PrunedConv2d cannot run at several widths"),
        (nn.PReLU(), "A PReLU cannot run at several widths"),
        (nn.GroupNorm(2, 8), "A GroupNorm cannot run at several widths"),
    ],
)
def test_layers_that_cannot_be_narrower_are_refused(layer, message):
    with pytest.raises(NetworkError, match=message):
        slim(nn.Sequential(nn.Conv2d(3, 8, 3), layer), Width([1.0, 0.5]))


def test_a_network_whose_layers_do_not_fit_each_other_at_a_width_is_refused():
    def chain(*units):
        return Chain({f"unit{i}": unit for i, unit in enumerate(units)}, nn.Identity(), SHAPE, "Mine")

    half = Width([1.0, 0.5])
    padded = slim(chain(nn.Conv2d(3, 8, 3), Padded(8)).units, half, reads_all=True)
    with pytest.raises(NetworkError, match=r"Mine does not run at width 0\.5"):
        require_all_widths(padded, half, SHAPE, "Mine")
    flat = nn.Conv2d(3, 10, 7), nn.Flatten(), nn.Linear(40, 5)
    require_all_widths(slim(chain(*copy.deepcopy(flat)).units, half, reads_all=True), half, SHAPE, "Mine")
    width = Width([1.0, 0.25])  # 2 of 10 channels, of 4 pixels each, and a quarter of 40 features
    network = slim(chain(*flat).units, width, reads_all=True)
    with pytest.raises(NetworkError, match=r"at width 0\.25, where its layers do not fit each other"):
        require_all_widths(network, width, SHAPE, "Mine")
    assert width.now == 1
