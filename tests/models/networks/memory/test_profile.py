"""Costs found on the meta device: multiply-accumulates, bytes, and that looking changes nothing."""

import copy
from importlib import import_module

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from models.networks.cut import Cut, block_shapes, cut_chain
from models.networks.heads.classifiers import AuxHead
from models.networks.layers.grouped import GroupLinear
from models.networks.layers.pooling import GlobalAveragePool
from models.networks.memory.profile import activation_bytes, profile
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.mlp import MLP
from models.networks.resnet import CifarResNet
from models.networks.vgg import VGG


@pytest.mark.parametrize(
    ("layer", "shape", "plain", "more"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 5, 7), 8 * 3 * 9 * 5 * 7, 0),
        (nn.Conv2d(3, 8, 3, stride=2, bias=False), (3, 9, 9), 8 * 3 * 9 * 4 * 4, 0),
        (nn.Conv2d(8, 8, 3, padding=1, groups=4), (8, 5, 7), 8 * 2 * 9 * 5 * 7, 0),
        (nn.Linear(12, 5), (12,), 12 * 5, 5),
        (nn.Linear(12, 5, bias=False), (12,), 12 * 5, 0),
        (GroupLinear(3, 4, 5), (12,), 3 * 4 * 5, 15),
        (nn.BatchNorm2d(4), (4, 6, 6), 0, 2 * 4 * 36),
        (nn.BatchNorm1d(4), (4,), 0, 2 * 4),
        *[(activation, (4, 6, 6), 0, 4 * 36) for activation in (nn.ReLU(), nn.LeakyReLU(0.1))],
        *[(pooling(2), (4, 6, 6), 0, 4 * 36) for pooling in (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)],
        (GlobalAveragePool(), (4, 6, 6), 0, 4 * 36),
        (BasicBlock(6, 6), (6, 5, 5), 2 * 9 * 6 * 6 * 25, 2 * 2 * 6 * 25 + 2 * 6 * 25),  # not the addition
    ],
)
def test_published_macs_of_an_image_count_elements_too(layer, shape, plain, more):
    def macs(**options):
        ((cost, _),) = profile([layer], shape, **options)
        return cost.forward_macs

    assert macs(convention="plain") == macs(convention="plain", batch_size=5) == plain
    assert macs() == macs(batch_size=5) == macs(convention="published") == plain + more


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
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), rng)


def measure(modules, run):
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    with SavedTensorMeter(tensors) as meter:
        run().sum().backward()
    assert meter.current == 0
    return meter.peak


def aux_head(shape):
    return AuxHead(shape, 10, convs=len(shape) // 3)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_blocks", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name in networks() if "without" not in name])
def test_predicted_bytes_of_each_block_are_those_of_a_real_step(name, num_blocks, memory_format):
    net = networks()[name]
    blocks = cut_chain(net, num_blocks, Cut("units"), aux_head)
    heads = [*map(aux_head, block_shapes(net, blocks)[:-1]), net.classifier]
    costs = profile(blocks, net.image_shape, batch_size=6, make_head=lambda k, shape: heads[k])
    x = torch.randn(6, *net.image_shape).contiguous(memory_format=memory_format)
    for block, head, cost in zip(blocks, heads, costs, strict=True):
        assert measure([block, head], lambda: head(block(x))) == activation_bytes(cost) > 0  # noqa: B023
        x = block(x).detach()


@pytest.mark.parametrize("name", networks())
def test_predicted_bytes_with_a_head_on_every_unit_are_those_of_a_real_step(name):
    net = networks()[name]
    heads = list(map(aux_head, block_shapes(net, net.units)))
    costs = profile(net.units, net.image_shape, batch_size=6, make_head=lambda index, shape: heads[index])

    def run():
        x, logits = torch.randn(6, *net.image_shape), []
        for unit, head in zip(net.units, heads, strict=True):
            x = unit(x)
            logits.append(head(x))
        return torch.stack(logits)

    assert measure([net, *heads], run) == activation_bytes([cost for pair in costs for cost in pair])
