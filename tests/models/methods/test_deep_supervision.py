"""Deep supervision: the sum of all losses, backpropagated; one block is backpropagation."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD
from training import Batches, assert_equal_weights, batches, saved_in_a_step, train

from losses.errors import UsageError
from models.methods.backprop import Backprop
from models.methods.deep_supervision import DeepSupervision
from models.networks.heads.classifiers import AuxHead, LinearHead
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.vgg import VGG

SMALL = partial(VGG, plan=(8, 8, "M", 12, 12))
SHAPE = (3, 8, 8)
make_sgd = partial(SGD, lr=0.05, momentum=0.9)


def made(num_blocks=3, **options):
    torch.manual_seed(0)
    options = {"head": partial(AuxHead, hidden=8), "optimizer": make_sgd, **options}
    return DeepSupervision(network=SMALL, image_shape=SHAPE, num_classes=10, num_blocks=num_blocks, **options)


def test_a_step_is_that_of_the_summed_losses(tmp_path):
    model, plain = made(), made()
    [batch] = batches(1)
    train(model, tmp_path, Batches([batch]), max_epochs=1, limit_train_batches=1)
    optimizer = make_sgd(plain.parameters())
    x, total = batch.images, 0.0
    for block, head in zip(plain.blocks, plain.heads, strict=True):
        x = block(x)
        total = total + nn.functional.cross_entropy(head(x), batch.labels)
    total.backward()
    optimizer.step()
    for (name, ours), theirs in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)
    assert model.trainer.global_step == 1


def test_one_block_is_backpropagation(tmp_path):
    models = [made(1)]
    torch.manual_seed(0)
    models.append(Backprop(SMALL, SHAPE, 10, optimizer=make_sgd))
    for model in models:
        train(model, tmp_path, Batches(batches(3)), max_epochs=1, limit_train_batches=3)
    assert_equal_weights(*models)


def test_heads_are_freed_one_after_the_other():
    """Of what is held at a time one head is a part, not all."""
    models = [made(head=head).train() for head in (partial(AuxHead, convs=3, hidden=8), LinearHead)]
    for model in models:
        model.step_block = lambda k: None
    peaks = [saved_in_a_step(_backward_only(model), batches(1)[0])[0] for model in models]
    heads = sum(_saved_by(head, block) for head, block in zip(*_parts(models[0]), strict=True))
    assert peaks[0] - peaks[1] < heads


def _backward_only(model):
    model.backward_block = lambda k, loss: loss.backward()
    return model


def _parts(model):
    return list(model.heads), list(model.blocks)


def _saved_by(head, block):
    channels = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)][-1].out_channels
    x = torch.randn(6, channels, 4, 4, requires_grad=True)
    head = copy.deepcopy(head)
    with SavedTensorMeter([*head.parameters(), *head.buffers()]) as meter:
        y = head(x)
    del y
    return meter.peak


def test_plan():
    assert made().plan().held_together == [range(3)]


@pytest.mark.parametrize("options", [{"final_head": LinearHead}, {"epochs_per_block": 1}, {"frozen_blocks": 1}])
def test_refusals(options):
    with pytest.raises(UsageError, match="one network"):
        made(**options)
