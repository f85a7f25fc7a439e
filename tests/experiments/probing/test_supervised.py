"""Training with labels behind the blocks of a run: what is kept, what learns, what cannot come back."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

from datamodules.batch import Batch
from datamodules.digits import Digits
from experiments.measure.silent import silent_trainer
from experiments.measure.workbench import plain_steps
from experiments.probing.hidden_layers import layers_of
from experiments.probing.supervised import _continued, recoverable_top1
from models.methods.backprop import Backprop
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.vgg import VGG

SHAPE = (1, 8, 8)
NETWORK = partial(VGG, plan=(8, 8, "M", 16, 16))


@pytest.fixture
def model():
    return DecoupledGreedy(NETWORK, SHAPE, 10, num_blocks=2)


def test_first_layers_stay_as_they_are_and_all_behind_them_learns(model):
    kept = [*layers_of(model).values()][:2]
    whole = Backprop(partial(_continued, kept, NETWORK), SHAPE, 10).train()
    assert [name for name, _ in whole.blocks[0].named_children()] == ["kept", "conv3", "conv4"]
    theirs = (weight for layer in kept for weight in layer.state_dict().values())
    assert all(map(torch.equal, whole.blocks[0].kept.state_dict().values(), theirs))
    before = deepcopy(whole.state_dict())
    next(plain_steps(whole, Batch(torch.randn(8, *SHAPE), torch.arange(8))))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith("blocks.0.kept."), name


def test_what_a_block_discarded_cannot_come_back(model):
    """A block of zeros behind one of random weights, which are enough to learn from."""
    layers = layers_of(model)
    nn.init.zeros_(layers["block2/conv4"].conv4[0].weight)
    before = deepcopy(model.blocks.state_dict())
    data, trainer = Digits(batch_size=32), silent_trainer(accelerator="cpu")
    found = recoverable_top1(layers, NETWORK, data, trainer, epochs=3, seed=0)
    assert list(found) == ["block1/conv2", "block2/conv4"]
    assert found["block1/conv2"] > 0.6
    assert found["block2/conv4"] < 0.2
    assert all(map(torch.equal, model.blocks.state_dict().values(), before.values()))
