"""Neuron groups against the published network, written as thin modules in loops: same weights, float64."""

from functools import partial

import pytest
import torch
from reference.neuron_groups import PublishedNetwork
from torch.optim import SGD

from datamodules.batch import Batch
from models.methods.neuron_groups import NeuronGroups
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead
from models.networks.resnet import CifarResNet

WIDTHS, CLASSES, HIDDEN, WEIGHT, TEMPERATURE = (8, 8, 16, 16), 5, 12, 0.5, 2.0
sgd = partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    return Batch(images, torch.randint(CLASSES, (6,), generator=generator))


def counterparts(model, published):
    """(what it is, our parameter, group, groups, theirs), of all parameters."""
    ours = {name: unit for block in model.blocks for name, unit in block.named_children()}
    theirs = dict(published.units)
    heads = {**published.heads, "final": [published.final]}
    for (name, thin), head in zip(heads.items(), model.heads, strict=True):
        ours[f"head of {name}"], theirs[f"head of {name}"] = head, thin
    for name, parts in theirs.items():
        for g, thin in enumerate(parts):
            for (label, one), other in zip(ours[name].named_parameters(), thin.parameters(), strict=True):
                yield f"{label} of {name}, group {g}: ", one, g, len(parts), other


def both(num_blocks, num_groups):
    """Our network and the published one, with the same weights."""
    torch.manual_seed(0)
    head = partial(AuxHead, hidden=HIDDEN)
    network, cut = partial(CifarResNet, depth=32, widths=WIDTHS), Cut(by="published")
    options = {"diversity": WEIGHT, "temperature": TEMPERATURE}
    ours = NeuronGroups(network, (3, 8, 8), CLASSES, num_blocks, num_groups, cut, head, head, **options).double()
    theirs = PublishedNetwork(num_blocks, num_groups, WIDTHS, HIDDEN, CLASSES, WEIGHT, TEMPERATURE).double()
    for _, one, g, groups, other in counterparts(ours, theirs):
        other.data = one.detach().chunk(groups)[g].reshape(other.shape).clone()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    return ours, theirs


def part(tensor, group, groups, like):
    return tensor.chunk(groups)[group].reshape(like.shape)


@pytest.mark.parametrize(("num_blocks", "num_groups"), [(1, 2), (2, 1), (2, 4), (4, 2), (8, 4), (16, 1)])
def test_predictions_gradients_and_steps_equal_those_of_the_published_network(num_blocks, num_groups):
    ours, theirs = both(num_blocks, num_groups)
    batch = draw(0)
    ours.update_block = lambda k, loss: loss.backward()
    ours.training_step(batch, 0)
    theirs.backward(batch.images, batch.labels)
    for name, one, g, groups, other in counterparts(ours, theirs):
        torch.testing.assert_close(
            part(one.grad, g, groups, other), other.grad, msg=lambda said, name=name: name + said
        )

    optimizers = [sgd(ours.block_parameters(k)) for k in range(num_blocks + 1)]
    their_optimizer = sgd(theirs.parameters())

    def update_block(k, loss):
        loss.backward()
        optimizers[k].step()
        optimizers[k].zero_grad()

    ours.update_block = update_block
    ours.zero_grad()
    for seed in (1, 2, 3):
        batch = draw(seed)
        ours.training_step(batch, 0)
        their_optimizer.zero_grad()
        theirs.backward(batch.images, batch.labels)
        their_optimizer.step()
    for name, one, g, groups, other in counterparts(ours, theirs):
        torch.testing.assert_close(
            part(one.data, g, groups, other), other.data, msg=lambda said, name=name: name + said
        )

    with torch.no_grad():
        predicted = ours.eval().block_logits(batch.images).values()
        for logits, of_groups in zip(predicted, theirs.eval().predictions(batch.images), strict=True):
            torch.testing.assert_close(logits.view(6, -1, CLASSES), torch.stack(of_groups, dim=1))
