"""Overlapping supervision: one shared forward pass against three, what reaches what, weights, refusals."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from training import Batches, batches, smooth, train

from losses.errors import UsageError
from models.methods.overlapping_greedy import OverlappingGreedy, TwoHeads
from models.networks.heads.classifiers import AuxHead
from models.networks.vgg import VGG

SMALL = partial(VGG, plan=(8, 8, "M", 12, 12))
SHAPE = (3, 8, 8)


def made(num_blocks=4, network=SMALL, **options):
    torch.manual_seed(0)
    options = {"head": partial(AuxHead, hidden=8), **options}
    return OverlappingGreedy(network=network, image_shape=SHAPE, num_classes=10, num_blocks=num_blocks, **options)


def gradients_of_a_step(model, batch):
    model.backward_block = lambda k, loss: loss.backward()
    model.step_block = lambda k: None
    model.training_step(batch, 0)
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def three_forward_passes(model, batch):
    """As the released code: every cascade and every block alone runs from its own detached input."""
    inputs = [batch.images]
    with torch.no_grad():
        for block in model.blocks:
            inputs.append(copy.deepcopy(block)(inputs[-1]))
    total = 0.0
    for k in range(1, model.num_blocks):
        head = model.heads[k]
        alone, pair = (head.alone, head.pair) if isinstance(head, TwoHeads) else (head, head)
        through_both = model.blocks[k](model.blocks[k - 1](inputs[k - 1]))
        own = model.blocks[k](inputs[k])
        total = total + model.pair_weight * nn.functional.cross_entropy(pair(through_both), batch.labels)
        total = total + model.alone_weight * nn.functional.cross_entropy(alone(own), batch.labels)
    total.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("weights", [(0.3, 0.7), (0.001, 0.999), (0.0, 1.0)])
@pytest.mark.parametrize("network", [SMALL, smooth], ids=["BatchNorm", "smooth"])
def test_one_forward_pass_gives_the_gradients_of_three(weights, network):
    alone, pair = weights
    options = {"num_blocks": 3 if network is smooth else 4, "network": network}
    one = made(**options, alone_weight=alone, pair_weight=pair).double()
    other = copy.deepcopy(one)
    batch = batches(1)[0]
    batch = batch._replace(images=batch.images.double())
    ours, theirs = gradients_of_a_step(one, batch), three_forward_passes(other, batch)
    assert set(ours) == set(theirs)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-10, atol=1e-14)


def test_two_blocks_are_the_whole_network_with_one_loss_more(tmp_path):
    """K = 2, no losses alone: backpropagation, bit for bit."""
    torch.manual_seed(0)
    model, whole = made(2, alone_weight=0.0, pair_weight=1.0), made(2, alone_weight=0.0, pair_weight=1.0)
    batch = batches(1)[0]
    ours = gradients_of_a_step(model, batch)
    logits = whole.heads[1](whole.blocks[1](whole.blocks[0](batch.images)))
    nn.functional.cross_entropy(logits, batch.labels).backward()
    for name, p in whole.named_parameters():
        assert torch.equal(ours[name], p.grad), name


def test_batch_norm_counts_a_batch_once(tmp_path):
    model = made()
    train(model, tmp_path, Batches(batches(3)), max_epochs=1, limit_train_batches=3)
    counts = {int(b) for name, b in model.blocks.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts == {3}
    assert model.trainer.global_step == 3


def test_what_predicts():
    model = made().eval()
    logits = model.block_logits(batches(1)[0].images)
    assert list(logits) == ["block2", "block3", "block4"]
    assert isinstance(model.heads[1], TwoHeads)
    assert len(made(alone_weight=0.0).heads[1].state_dict()) < len(model.heads[1].state_dict())


def test_plan():
    """One shared forward pass: 1.67 times the trunk's work far from the ends."""
    assert made().plan().backward_passes == [1, 2, 2, 2]
    assert made(alone_weight=0.0).plan().backward_passes == [1, 2, 2, 1]
    assert made().plan().held_together == [range(2), range(1, 3), range(2, 4)]


@pytest.mark.parametrize(
    ("options", "why"),
    [({"num_blocks": 1}, "at least 2"), ({"epochs_per_block": 1}, "together"), ({"frozen_blocks": 1}, "together")],
)
def test_refusals(options, why):
    with pytest.raises(UsageError, match=why):
        made(**options)
