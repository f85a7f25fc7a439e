"""Neuron groups: isolation over blocks and groups, equality with the published loop and with DGL."""

from functools import partial
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training import assert_equal_weights, evaluated

from datamodules.batch import Batch
from experiments.studies.published_loop import PublishedLoop
from losses.diversity import diversity
from losses.errors import NetworkError, UsageError
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.neuron_groups import NeuronGroups, Sharing
from models.networks.chain import Chain
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead
from models.networks.mlp import MLP
from models.networks.resnet import CifarResNet
from models.networks.vgg import VGG, VGG6a

SHAPE, CLASSES = (3, 8, 8), 5
resnet = partial(CifarResNet, depth=14, widths=[8, 8, 16, 16])
head = partial(AuxHead, hidden=32)
# Ends of blocks so that a later block begins with a changed shortcut (layer2_0) and with an identity.
CUTS = {1: [], 2: ["layer1_1"], 3: ["layer1_1", "layer2_0"]}


class PreActivated(nn.Module):
    """BatchNorm – ReLU – convolution; a learned shortcut reads the same (He et al., "Identity Mappings", 2016)."""

    def __init__(self, channels, out, stride=1):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, out, 3, stride, 1)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if channels != out else None

    def forward(self, x):
        y = self.norm(x).relu()
        return self.conv(y) + (x if self.shortcut is None else self.shortcut(y))


def pre_activation(image_shape, num_classes):
    units = {"stem": nn.Conv2d(3, 8, 3, padding=1), "layer1_1": PreActivated(8, 8), "layer2_0": PreActivated(8, 16, 2)}
    units["layer2_1"] = PreActivated(16, 16)
    return Chain(units, AuxHead((16, 4, 4), num_classes), image_shape, "pre-activation ResNet")


both_networks = pytest.mark.parametrize("network", [resnet, pre_activation], ids=["ResNet", "pre-activation"])


def build(num_blocks, num_groups, network=resnet, **arguments):
    torch.manual_seed(0)
    arguments = {"cut": Cut(after=CUTS[num_blocks]), "head": head, "final_head": head, **arguments}
    return NeuronGroups(network, SHAPE, CLASSES, num_blocks, num_groups, **arguments).double()


def draw(size=6):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, *SHAPE, generator=generator, dtype=torch.float64)
    return Batch(images, torch.randint(CLASSES, (size,), generator=generator))


def gradient_per_node(model):
    """(block, group) → name → gradient of the group's slice of each parameter, None for none at all."""
    slices = {}
    for k, (block, block_head) in enumerate(zip(model.blocks, model.heads[:-1], strict=True)):
        for name, parameter in [*block.named_parameters(), *block_head.named_parameters(prefix="head")]:
            for g in range(model.num_groups):
                grad = None if parameter.grad is None else parameter.grad.chunk(model.num_groups)[g]
                slices.setdefault((k, g), {})[name] = grad
    return slices


def is_zero(gradient):
    return gradient is None or not gradient.any()


# -- isolation -----------------------------------------------------------------------------------------


@both_networks
@pytest.mark.parametrize("sharing", get_args(Sharing))
@pytest.mark.parametrize(("num_blocks", "num_groups"), [(1, 2), (3, 4)])
def test_loss_of_a_group_reaches_that_group_of_that_block_only(num_blocks, num_groups, sharing, network):
    model, (x, labels, *_) = build(num_blocks, num_groups, network, sharing=sharing), draw()
    for k in range(num_blocks):
        features = model.blocks[k](x)
        logits = model.heads[k](features)
        for g in range(num_groups):
            model.zero_grad(set_to_none=True)
            F.cross_entropy(logits[:, g], labels).backward(retain_graph=True)
            for node, gradients in gradient_per_node(model).items():
                for name, gradient in gradients.items():
                    assert is_zero(gradient) == (node != (k, g)), (node, name)
            assert all(is_zero(p.grad) for p in model.heads[-1].parameters())
        x = model.hand_on(k, features)
    assert not x.requires_grad  # what the final head reads


def perturbed(features):
    """Features of which only group 1 of 4 differs."""
    return torch.cat([features[:, : features.shape[1] // 4] + 1, features[:, features.shape[1] // 4 :]], dim=1)


def groups_that_changed(before, after, dim=1):
    changes = (after - before).chunk(4, dim)
    return {g for g, change in enumerate(changes, start=1) if change.abs().max() > 1e-6}


ALL = {1, 2, 3, 4}


@both_networks
@pytest.mark.parametrize(
    ("sharing", "heads", "blocks"), [("full", ALL, ALL), ("between_blocks", {1}, ALL), ("none", {1}, {1})]
)
def test_who_reads_the_values_of_a_group(sharing, heads, blocks, network):
    model = build(2, 4, network, sharing=sharing).eval()
    features = model.blocks[0](draw().images).detach()
    assert groups_that_changed(model.heads[0](features), model.heads[0](perturbed(features))) == heads
    assert groups_that_changed(model.blocks[1](features), model.blocks[1](perturbed(features))) == blocks


def test_values_of_other_groups_get_no_gradient():
    model = build(2, 4).eval()
    features = model.blocks[0](draw().images).detach().requires_grad_()
    gradient = torch.autograd.grad(model.heads[0](features)[:, 1].sum(), features)[0]
    assert [bool(part.any()) for part in gradient.chunk(4, dim=1)] == [False, True, False, False]


def test_groups_that_do_not_share_never_see_each_other():
    model, images = build(3, 4, sharing="none").eval(), draw().images
    before = model.block_logits(images)
    nn.init.normal_(model.blocks[0].stem[0].weight.data[:2])  # group 1 of the first block
    for name, after in list(model.block_logits(images).items())[:-1]:
        assert groups_that_changed(before[name], after) == {1}, name


@pytest.mark.parametrize(("before", "now"), [(True, "full"), (False, "none")])
def test_earlier_runs_go_on_as_they_were(before, now):
    old, new = build(2, 2, sharing=before), build(2, 2, sharing=now)
    assert old.sharing == new.sharing == now
    assert_equal_weights(old, new)


def test_one_block_of_blind_heads_is_thin_networks():
    """The single-thread points of the paper: there is nothing to share between blocks."""
    ours, thin = build(1, 4, sharing="between_blocks"), build(1, 4, sharing="none")
    assert_equal_weights(ours, thin)


# -- equality --------------------------------------------------------------------------------------------


def published(model):
    """The published loop with the weights of a model: separate heads."""
    torch.manual_seed(3)
    groups, loop_heads = model.num_groups, nn.ModuleList()
    for stacked in model.heads[:-1]:
        shape = (stacked[0].weight.shape[1], 8, 8)
        singles = nn.ModuleList([head(shape, CLASSES).double() for _ in range(groups)])
        for g, single in enumerate(singles):
            for layer, wide in zip(single, stacked, strict=True):
                for name, parameter in layer.named_parameters():
                    parameter.data = dict(wide.named_parameters())[name].detach().chunk(groups)[g].view(parameter.shape)
        loop_heads.append(singles)
    return PublishedLoop(model.blocks, loop_heads, model.heads[-1], model.diversity, model.temperature)


def gradients_of_a_step(model, batch):
    """Name → gradient, of all parts."""
    model.update_block = lambda k, loss: loss.backward()
    model.training_step(batch, 0)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize(("num_blocks", "num_groups"), [(1, 2), (2, 4), (3, 2)])
def test_gradients_equal_those_of_the_published_loop(num_blocks, num_groups, weight):
    model, batch = build(num_blocks, num_groups, diversity=weight, temperature=2.0), draw()
    loop = published(model)
    ours = gradients_of_a_step(model, batch)
    model.zero_grad(set_to_none=True)
    loop.step(batch.images, batch.labels)
    for name, parameter in model.named_parameters():
        if name.startswith(("blocks", f"heads.{num_blocks}")):
            torch.testing.assert_close(ours[name], parameter.grad)
    for k, singles in enumerate(loop.heads):
        for name, _ in model.heads[k].named_parameters():
            parts = torch.stack([dict(single.named_parameters())[name].grad for single in singles])
            torch.testing.assert_close(ours[f"heads.{k}.{name}"].reshape(parts.shape), parts)


@pytest.mark.parametrize("final_head", [None, head], ids=["classifier", "final head"])
def test_one_group_is_decoupled_greedy_learning(final_head):
    """Same parts; with the same weights the same losses and gradients, bit for bit."""
    ours = build(3, 1, final_head=final_head)
    torch.manual_seed(0)
    theirs = DecoupledGreedy(resnet, SHAPE, CLASSES, 3, Cut(after=CUTS[3]), head, final_head=final_head).double()
    batch = draw()
    if final_head:
        theirs.load_state_dict(ours.state_dict())  # drawn in another order
    assert_equal_weights(ours, theirs)
    expected = gradients_of_a_step(theirs, batch)
    for name, gradient in gradients_of_a_step(ours, batch).items():
        assert torch.equal(gradient, expected[name]), name


def test_one_group_with_a_final_head_has_a_head_on_every_block():
    model = build(2, 1)
    assert model.part_names == ["block1", "block2", "final"]
    assert [type(block_head) for block_head in model.heads] == [AuxHead] * 3


# -- evaluation ------------------------------------------------------------------------------------------


def test_head_ensemble_and_single_group_are_all_reported():
    model, batch = build(2, 4, temperature=2.0).eval(), draw(48)
    with torch.no_grad():
        shapes = {name: z.shape for name, z in model.block_logits(batch.images).items()}
    assert shapes == {"block1": (48, 4, CLASSES), "block2": (48, 4, CLASSES), "final": (48, CLASSES)}
    # Surer than untrained heads are, so that every way to predict has another accuracy.
    logits = {name: 3 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    model.block_logits = lambda images: logits
    metrics = evaluated(model, batch)
    p1, p2 = (logits[name].softmax(2).mean(1) for name in ("block1", "block2"))
    final = logits["final"].softmax(1)

    def accuracy(p):
        return (p.argmax(1) == batch.labels).float().mean()

    assert metrics["ensemble/top1"] == accuracy(p1 / 7 + 2 * p2 / 7 + 4 * final / 7)
    assert metrics["top1"] == metrics["final/top1"] == accuracy(final)
    assert metrics["block2/top1"] == accuracy(p2) != accuracy(logits["block2"].mean(1))
    groups = [accuracy(group) for group in logits["block2"].unbind(1)]
    assert metrics["block2/group1/top1"] == groups[0]
    assert groups[0] not in groups[1:]  # another group would be noticed
    torch.testing.assert_close(metrics["loss"], F.cross_entropy(logits["final"], batch.labels), check_dtype=False)
    torch.testing.assert_close(
        metrics["block1/diversity"], diversity(logits["block1"], batch.labels, 2.0), check_dtype=False
    )
    by_group = sum(F.cross_entropy(z, batch.labels) for z in logits["block1"].unbind(1))
    torch.testing.assert_close(metrics["block1/loss"], by_group + 0.5 * metrics["block1/diversity"], check_dtype=False)


# -- networks ----------------------------------------------------------------------------------------------


def test_vgg_groups_its_convolutions_and_leaves_the_rest_to_the_final_head():
    model = NeuronGroups(partial(VGG6a, width=1 / 16), (3, 16, 16), CLASSES, 4, 4, head=head, cut=Cut(by="units"))
    assert [[*dict(block.named_children())] for block in model.blocks] == [[f"conv{k}"] for k in (1, 2, 3, 4)]
    logits = model.block_logits(torch.randn(2, 3, 16, 16))
    assert logits["final"].shape == (2, CLASSES)
    assert [m.out_features for m in model.heads[-1].modules() if isinstance(m, nn.Linear)] == [64, CLASSES]


@pytest.mark.parametrize(("groups", "widths"), [(6, [126, 258, 510, 510]), (10, [130, 260, 510, 510])])
def test_widths_of_vgg6a_are_rounded_to_multiples(groups, widths):
    with torch.device("meta"):
        chain = VGG6a((3, 32, 32), 10, width_multiple=groups)
    assert [unit[0].out_channels for unit in list(chain.units)[:4]] == widths


@pytest.mark.parametrize(("sharing", "millions"), [("full", 3.82), ("between_blocks", 3.82), ("none", 0.64)])
def test_sharing_decides_the_parameters_of_vgg6a(sharing, millions):
    """Six groups, every convolution a block: with blind heads the convolutions after the cuts stay whole."""
    network, cut = partial(VGG6a, width_multiple=6), Cut(by="units")
    with torch.device("meta"):
        model = NeuronGroups(network, (3, 32, 32), 10, 4, 6, cut, sharing=sharing)
    assert sum(p.numel() for p in model.blocks.parameters()) / 1e6 == pytest.approx(millions, abs=5e-3)


# -- what cannot be built -----------------------------------------------------------------------------------


def test_impossible_groups():
    with pytest.raises(NetworkError, match="3 groups do not divide the 8 channels"):
        build(2, 3)
    with pytest.raises(NetworkError, match="at least 1, not 0"):
        build(2, 0)
    with pytest.raises(NetworkError, match="no feature maps"):
        NeuronGroups(partial(MLP, hidden=[8, 8]), SHAPE, CLASSES, 2, 2)
    with pytest.raises(UsageError, match="diversity is a weight, at least 0"):
        build(2, 2, diversity=-1.0)
    with pytest.raises(UsageError, match="full, between_blocks or none, not some"):
        build(2, 2, sharing="some")
    with pytest.raises(NetworkError, match=r"width_multiple: 6"):
        NeuronGroups(partial(VGG, plan=[16, 16]), SHAPE, CLASSES, 2, 6)
