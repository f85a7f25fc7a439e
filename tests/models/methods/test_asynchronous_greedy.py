"""Asynchronous DGL: lots decide who learns, from what its buffer holds."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import SGD
from training import SIZE, Batches, assert_equal_weights, batches, made, train

from experiments.callbacks.info_batch import InfoBatch
from experiments.callbacks.online_probe import OnlineProbe
from experiments.callbacks.output_signal import OutputSignal
from experiments.measure.cost import network_cost
from losses.errors import UsageError
from models.methods.asynchronous_greedy import AsynchronousGreedy, ReplayBuffer
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.heads.classifiers import LinearHead
from models.networks.vgg import VGG

asynchronous = partial(made, AsynchronousGreedy, num_blocks=3, head=LinearHead, final_head=LinearHead)
STEPS = 4


def fit(model, folder, steps=STEPS):
    train(model, folder, Batches(batches(steps)), max_epochs=1, limit_train_batches=1.0)
    return model


def lots(monkeypatch, *drawn):
    """Have these lots drawn, again and again."""
    coming = iter(drawn * STEPS)
    monkeypatch.setattr(torch, "multinomial", lambda speeds, count: torch.tensor([next(coming)]))


def test_lots_in_the_order_of_the_blocks_are_decoupled_greedy_learning(monkeypatch, tmp_path):
    lots(monkeypatch, 1, 2, 3, 0)
    ours = fit(asynchronous(buffer=1), tmp_path)
    plain = made(DecoupledGreedy, num_blocks=3, head=LinearHead, final_head=LinearHead)
    assert_equal_weights(ours, fit(plain, tmp_path))
    assert ours.trainer.global_step == STEPS


def test_a_block_with_an_empty_buffer_waits(monkeypatch, tmp_path):
    lots(monkeypatch, 2, 3, 1, 0)
    model = fit(asynchronous(), tmp_path, steps=1)
    before = asynchronous()
    moved = [any(not torch.equal(a, b) for a, b in pairs(model, before, k)) for k in range(4)]
    assert moved == [True, True, False, False]


def pairs(one, other, k):
    return zip(one.block_parameters(k), other.block_parameters(k), strict=True)


def test_blocks_learn_as_often_as_they_are_fast(tmp_path):
    model, counts = asynchronous(speeds=[2, 1, 4, 2], optimizer=partial(SGD, lr=1e-4)), [0] * 4
    learn = model.update_block

    def counted(k, loss):
        counts[k] += 1
        learn(k, loss)

    model.update_block = counted
    torch.manual_seed(0)
    fit(model, tmp_path, steps=200)
    assert counts[0] == 200
    assert [count / 200 for count in counts] == pytest.approx([1, 0.5, 2, 1], rel=0.25)


def test_the_least_used_and_of_these_the_newest_is_taken():
    buffer = ReplayBuffer(2)
    assert not buffer
    for name in "abc":
        buffer.put(name, None)
    assert len(buffer) == 2
    assert [buffer.take()[0] for _ in range(3)] == ["c", "b", "c"]
    buffer.put("d", None)
    assert [buffer.take()[0] for _ in range(3)] == ["d", "d", "d"]


def test_a_resumed_run_draws_the_same_lots(tmp_path):
    def run(epochs, resume=None):
        model = AsynchronousGreedy(
            [1, 3], network=partial(VGG, plan=(8, "M", 8)), image_shape=(1, 8, 8), num_classes=10, head=LinearHead
        )
        last = ModelCheckpoint(tmp_path, f"after{epochs}", save_on_train_epoch_end=True)
        options = {"callbacks": [last], "enable_checkpointing": True}
        train(model, tmp_path, max_epochs=epochs, resume=resume, **options)
        return model

    torch.manual_seed(0)
    whole = run(2)
    torch.manual_seed(0)
    run(1)
    assert_equal_weights(whole, run(2, tmp_path / "after1.ckpt"))


@pytest.mark.parametrize("callback", [OnlineProbe, OutputSignal, InfoBatch])
def test_callbacks_that_pair_outputs_with_one_batch_are_refused(callback, tmp_path):
    with pytest.raises(UsageError, match=f"{callback.__name__} pairs what all blocks make"):
        train(asynchronous(), tmp_path, Batches(batches(1)), callbacks=[callback()])


def test_several_processes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="draws lots, and each process others"):
        train(asynchronous(), tmp_path, Batches(batches(1)), strategy="ddp")


def test_parts_cost_as_much_as_they_are_fast():
    fast = asynchronous(speeds=[2, 4, 2, 1])
    once = made(DecoupledGreedy, num_blocks=3, head=LinearHead, final_head=LinearHead)
    ours, theirs = (network_cost(model, SIZE) for model in (fast, once))
    blocks = [node.forward_macs for node in theirs.nodes]
    more = blocks[1] - theirs.final_head[1] / 2
    assert ours.predicted_step_ratio * ours.backprop_macs == pytest.approx(sum(blocks) + theirs.final_head[1] + more)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"speeds": [1.0, 2.0]}, "each of 4 blocks"), ({"accumulate": 2}, "accumulate"), ({"frozen_blocks": 1}, "frozen")],
)
def test_what_has_no_meaning_is_refused(options, why):
    with pytest.raises(UsageError, match=why):
        asynchronous(**options)
