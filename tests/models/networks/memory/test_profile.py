"""Costs found on the meta device: multiply-accumulates, bytes, and that looking changes nothing."""

import copy
from importlib import import_module

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from models.networks.cut import Cut, cut_chain
from models.networks.heads.classifiers import AuxHead
from models.networks.layers.pooling import GlobalAveragePool
from models.networks.memory.profile import activation_bytes, profile
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.mlp import MLP
from models.networks.resnet import CifarResNet
from models.networks.vgg import VGG


def macs(module, shape, convention, **kwargs):
    ((cost, _),) = profile([module], shape, convention=convention, **kwargs)
    return cost.forward_macs


@pytest.mark.parametrize(
    ("factor", "num_blocks", "millions"),
    [
        *[(1, k, m) for k, m in ((1, 70.06), (2, 36.98), (4, 19.34), (8, 10.85), (16, 6.04))],
        *[(2, k, m) for k, m in ((1, 277.5), (2, 147.4), (4, 76.7), (8, 42.9), (16, 23.9))],
    ],
)
def test_slowest_node_has_the_published_macs(factor, num_blocks, millions):
    with torch.device("meta"):
        chain = CifarResNet((3, 32, 32), 10, depth=32, widths=[factor * w for w in (16, 16, 32, 64)])
        blocks = cut_chain(chain, num_blocks, Cut("published"), lambda shape: AuxHead(shape, 10))

        def make_head(k, shape):
            return chain.classifier if k == num_blocks - 1 else AuxHead(shape, 10, hidden=128 * factor)

        costs = profile(blocks, chain.image_shape, make_head=make_head, convention="published")
    assert max(block.forward_macs + head.forward_macs for block, head in costs) == pytest.approx(
        millions * 1e6, rel=5e-3
    )


def test_plain_macs_are_multiply_accumulates_alone():
    assert macs(nn.Conv2d(3, 8, 3, padding=1), (3, 5, 7), "plain") == 8 * 3 * 9 * 5 * 7
    assert macs(nn.Conv2d(3, 8, 3, stride=2, bias=False), (3, 9, 9), "plain") == 8 * 3 * 9 * 4 * 4
    assert macs(nn.Conv2d(8, 8, 3, padding=1, groups=4), (8, 5, 7), "plain") == 8 * 2 * 9 * 5 * 7
    assert macs(nn.Linear(12, 5), (12,), "plain") == 12 * 5
    for free in (nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), GlobalAveragePool()):
        assert macs(free, (4, 6, 6), "plain") == 0


def test_published_macs_count_elements_too():
    assert macs(nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 5, 7), "published") == 8 * 3 * 9 * 5 * 7
    assert macs(nn.Linear(12, 5), (12,), "published") == 12 * 5 + 5
    assert macs(nn.Linear(12, 5, bias=False), (12,), "published") == 12 * 5
    assert macs(nn.BatchNorm2d(4), (4, 6, 6), "published") == 2 * 4 * 36
    assert macs(nn.BatchNorm1d(4), (4,), "published") == 2 * 4
    for one_per_input in (nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), GlobalAveragePool()):
        assert macs(one_per_input, (4, 6, 6), "published") == 4 * 36


def test_published_macs_of_a_residual_block_leave_out_the_addition():
    convolutions, normalisation, relu = 2 * 9 * 6 * 6 * 25, 2 * 2 * 6 * 25, 2 * 6 * 25
    assert macs(BasicBlock(6, 6), (6, 5, 5), "published") == convolutions + normalisation + relu


def test_published_macs_of_a_1c2f_head():
    channels, side, hidden = 6, 4, 9  # side: after the stride
    linears = (2 * channels * hidden + hidden) + (hidden * 10 + 10)
    expected = 18 * channels**2 * side**2 + 8 * channels * side**2 + linears + hidden
    assert macs(AuxHead((channels, 8, 8), 10, hidden=hidden), (channels, 8, 8), "published") == expected


@pytest.mark.parametrize("convention", ["published", "plain"])
def test_macs_do_not_depend_on_the_batch_size(convention):
    net = MLP((1, 4, 4), 10, hidden=(8, 8))
    assert macs(net, (1, 4, 4), convention, batch_size=2) == macs(net, (1, 4, 4), convention, batch_size=5)


def test_published_is_the_default_convention():
    net = nn.Linear(3, 2)
    assert profile([net], (3,))[0][0].forward_macs == macs(net, (3,), "published")


def test_cost_of_units_and_heads():
    conv, head = nn.Conv2d(3, 8, 3, padding=1), AuxHead((8, 5, 7), 10, convs=0, fcs=1)
    (conv_cost, conv_head), (relu_cost, relu_head) = profile(
        [conv, nn.ReLU()], (3, 5, 7), batch_size=4, make_head=lambda index, shape: head if index == 1 else None
    )
    assert conv_head is None
    assert (conv_cost.parameters, relu_cost.parameters, relu_head.parameters) == (3 * 8 * 9 + 8, 0, 8 * 10 + 10)
    assert conv_cost.output_shape == relu_cost.output_shape == (8, 5, 7)
    assert relu_head.output_shape == (10,)
    assert relu_cost.output_bytes == 4 * 4 * 8 * 5 * 7
    assert activation_bytes([conv_cost]) == 4 * 4 * 3 * 5 * 7  # its input
    assert activation_bytes([relu_cost]) == 4 * 4 * 8 * 5 * 7  # its output
    assert activation_bytes([relu_head]) == 4 * 4 * 8  # the pooled features


MODULE = import_module("models.networks.memory.profile")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("network", [CifarResNet, VGG, MLP])
def test_shortcuts_past_the_meta_kernels_change_no_cost(network, training, dtype, monkeypatch):
    chain = network((3, 16, 16), 10, **({"depth": 8} if network is CifarResNet else {})).to(dtype).train(training)

    def found():
        storages = {}  # their identities differ from one profile to the next
        costs = [cost for pair in profile(chain.units, (3, 16, 16), 4, lambda *_: nn.ReLU()) for cost in pair]
        saved = [{storages.setdefault(s, len(storages)): n for s, n in cost.saved.items()} for cost in costs]
        return saved, [{**vars(cost), "saved": None} for cost in costs]

    quick = found()
    monkeypatch.setattr(MODULE, "_AT_ONCE", {})
    assert quick == found()


def test_shortcuts_keep_shape_type_and_layout():
    maps = torch.empty(4, 6, 5, 5, device="meta").contiguous(memory_format=torch.channels_last)
    per_channel = [torch.empty(6, device="meta") for _ in range(4)]
    for operation, at_once in MODULE._AT_ONCE.items():
        arguments = (maps,) if "relu" in str(operation) else (maps, *per_channel, True, 0.1, 1e-5)
        ours, theirs = at_once(*arguments), operation(*arguments)
        for one, other in zip(*((y if isinstance(y, tuple) else (y,)) for y in (ours, theirs)), strict=True):
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def test_heads_are_made_for_the_features_of_their_unit():
    asked = []
    profile(VGG((3, 8, 8), 10, plan=(4, "M", 6), hidden=(5,)).units, (3, 8, 8), make_head=lambda *a: asked.append(a))
    assert asked == [(0, (4, 4, 4)), (1, (6, 4, 4)), (2, (5,))]


def test_everything_that_a_head_of_several_outputs_keeps_is_counted():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(4, 32, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.wide(x).square(), self.narrow(x)  # the square keeps what it reads

    ((_, head),) = profile([nn.Identity()], (4, 5, 5), 3, lambda index, shape: Two())
    assert head.output_shape == (2, 5, 5)
    assert sum(head.saved.values()) == 3 * 25 * 4 * (4 + 32)


def test_what_two_units_share_counts_once():
    units = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 6)]
    first, second = (cost for cost, _ in profile(units, (6,), batch_size=4))
    row = 4 * 4 * 6
    assert (activation_bytes([first]), activation_bytes([second])) == (2 * row, row)
    assert activation_bytes([first, second]) == 2 * row
    assert activation_bytes([first, first]) == 2 * row
    assert activation_bytes([]) == 0


def networks():
    return {
        "VGG": VGG((3, 8, 8), 10, plan=(6, 8, "M", 8, 12, "M"), hidden=(16,), dropout=0.2),
        "ResNet": CifarResNet((3, 8, 8), 10, depth=20),
        "MLP": MLP((1, 5, 5), 10, hidden=(16, 12, 8)),
        "MLP without BatchNorm": MLP((1, 5, 5), 10, hidden=(16, 12), batch_norm=False),
    }


@pytest.mark.parametrize("name", networks())
def test_profile_leaves_the_network_as_it_was(name):
    net = networks()[name]
    before, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    profile([net.units], net.image_shape, make_head=lambda *_: net.classifier)
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.device.type == "cpu" and p.grad is None and p.requires_grad for p in net.parameters())
    assert all(module.training and not module._forward_hooks for module in net.modules())
    assert torch.equal(torch.get_rng_state(), rng)


def measure(parameters_and_buffers, run):
    with SavedTensorMeter(parameters_and_buffers) as meter:
        run().sum().backward()
    assert meter.current == 0
    return meter.peak


def tensors(*modules):
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", networks())
def test_predicted_bytes_of_a_network_are_those_of_a_real_step(name, memory_format):
    net = networks()[name]
    costs = profile([*net.units, net.classifier], net.image_shape, batch_size=6)
    images = torch.randn(6, *net.image_shape).contiguous(memory_format=memory_format)
    measured = measure(tensors(net), lambda: net(images))
    assert activation_bytes([cost for cost, _ in costs]) == measured
    assert measured > images.nbytes


@pytest.mark.parametrize("num_blocks", [2, 3])
@pytest.mark.parametrize("name", [name for name in networks() if "without" not in name])
def test_predicted_bytes_of_each_block_are_those_of_a_real_step(name, num_blocks):
    net = networks()[name]

    def aux_head(shape):
        return AuxHead(shape, 10, convs=len(shape) // 3)

    blocks = cut_chain(net, num_blocks, Cut("units"), aux_head)
    heads = {}

    def make_head(k, shape):
        heads[k] = net.classifier if k == num_blocks - 1 else aux_head(shape)
        return heads[k]

    costs = profile(blocks, net.image_shape, batch_size=6, make_head=make_head)
    x = torch.randn(6, *net.image_shape)
    for k, (block, cost) in enumerate(zip(blocks, costs, strict=True)):
        features = []

        def run(block=block, head=heads[k], x=x, features=features):
            features.append(block(x))
            return head(features[0])

        assert measure(tensors(block, heads[k]), run) == activation_bytes(cost)
        x = features[0].detach()


@pytest.mark.parametrize("name", networks())
def test_predicted_bytes_with_a_head_on_every_unit_are_those_of_a_real_step(name):
    net = networks()[name]
    heads = {}

    def make_head(index, shape):
        heads[index] = AuxHead(shape, 10, convs=len(shape) // 3)
        return heads[index]

    costs = profile(net.units, net.image_shape, batch_size=6, make_head=make_head)

    def run():
        x, logits = torch.randn(6, *net.image_shape), []
        for unit, head in zip(net.units, heads.values(), strict=True):
            x = unit(x)
            logits.append(head(x))
        return torch.stack(logits)

    assert measure(tensors(net, *heads.values()), run) == activation_bytes([c for pair in costs for c in pair])


def test_peak_of_a_local_step_is_the_largest_block_not_the_sum():
    net = networks()["ResNet"]
    blocks = cut_chain(net, 3, Cut("activation_bytes"), lambda shape: AuxHead(shape, 10))
    heads = [AuxHead((block[-1].bn2.num_features, 1, 1), 10) for block in blocks[:-1]] + [net.classifier]
    predicted = [activation_bytes(c) for c in profile(blocks, net.image_shape, 6, lambda k, _: heads[k])]
    x = torch.randn(6, *net.image_shape)
    with SavedTensorMeter(tensors(net, *heads)) as meter:
        for block, head in zip(blocks, heads, strict=True):
            features = block(x)
            head(features).sum().backward()
            x = features.detach()
    assert meter.peak == max(predicted) < sum(predicted)
