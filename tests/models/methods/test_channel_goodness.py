"""Forward-Forward of channels: each block by its own goodness, the sum that predicts, one block."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from training import Recorder, assert_isolated, batches, evaluated, train

from losses.errors import NetworkError
from models.methods.channel_goodness import ChannelGoodness
from models.networks.goodness_vgg import GoodnessVGG
from models.networks.heads.goodness import ClassGoodness

network = partial(GoodnessVGG, plan=(10, 10, "M", 20))


def made(shape=(3, 8, 8), **options):
    torch.manual_seed(0)
    return ChannelGoodness(shape, 10, network, **{"num_blocks": 3, "optimizer": partial(SGD, lr=0.1), **options})


@pytest.fixture
def batch():
    return batches(1)[0]


def test_blocks_are_isolated(batch):
    assert_isolated(made(), batch)


def test_a_block_learns_which_class_s_channels_are_the_most_active(batch):
    model = made(goodness=partial(ClassGoodness, of="squares"))
    x, found = batch.images, []
    model.update_block = lambda k, loss: found.append(loss)
    model.training_step(batch, 0)
    for block, loss in zip(model.blocks, found, strict=True):
        x = block(x)
        sets = torch.stack([one.square().mean((1, 2, 3)) for one in x.split(x.shape[1] // 10, dim=1)], 1)
        torch.testing.assert_close(loss, F.cross_entropy(sets, batch.labels))


def test_one_block_is_backpropagation_to_the_last_goodness(tmp_path):
    model, recorder = made((1, 8, 8), num_blocks=1), Recorder()
    other = network((1, 8, 8), 10)
    other.units.load_state_dict(model.blocks[0].state_dict())
    optimizer, head = SGD(other.units.parameters(), lr=0.1), ClassGoodness((20, 4, 4), 10)
    train(model, tmp_path, callbacks=[recorder])
    for batch in recorder.batches:
        optimizer.zero_grad()
        F.cross_entropy(head(other.units(batch.images)), batch.labels).backward()
        optimizer.step()
    assert len(recorder.batches) == 8
    for ours, theirs in zip(model.blocks[0].parameters(), other.units.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("votes_from", "voters"), [(1, [0, 1, 2]), (2, [1, 2]), (3, [2]), (9, [2])])
def test_later_blocks_predict_together(votes_from, voters, batch):
    model = made(votes_from=votes_from).eval()
    goodness = [head(x) for head, x in zip(model.heads, model.walk(batch.images), strict=True)]
    torch.testing.assert_close(model(batch.images), sum(goodness[k] for k in voters))
    found = evaluated(model, batch)
    assert found["top1"] == found["sum/top1"]
    assert {"block1/top1", "block3/loss", "sum/loss"} <= set(found)
    assert "ensemble/top1" not in found


def test_blocks_that_have_not_learned_do_not_vote(batch):
    model = made(epochs_per_block=1, votes_from=2).eval()
    model.learned = 2
    assert [*model.block_logits(batch.images)] == ["block1", "block2", "sum"]
    assert torch.equal(model(batch.images), model.block_logits(batch.images)["block2"])


def test_frozen_blocks_do_not_vote(batch):
    model = made(frozen_blocks=2, votes_from=1).eval()
    assert torch.equal(model(batch.images), model.block_logits(batch.images)["block3"])


def test_layers_learn_digits(tmp_path):
    model = made((1, 8, 8), optimizer=partial(AdamW, lr=0.05))
    trainer = train(model, tmp_path, max_epochs=4, limit_train_batches=1.0, limit_val_batches=1.0)
    assert trainer.callback_metrics["val/top1"] > 0.8


def test_channels_that_are_no_equal_sets_are_refused():
    with pytest.raises(NetworkError, match="12 channels cannot be 10 equal sets"):
        ChannelGoodness((3, 8, 8), 10, partial(GoodnessVGG, plan=(10, 12)))
