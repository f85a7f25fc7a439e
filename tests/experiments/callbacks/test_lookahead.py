"""Lookahead: the published rule, one clock for all blocks, resumed runs, the end."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim import SGD
from training import Batches, assert_equal_weights, batches, train

from experiments.callbacks.lookahead import Lookahead
from losses.errors import UsageError
from models.methods.closed_form import ClosedFormMLP
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.heads.classifiers import AuxHead
from models.networks.vgg import VGG

SHAPE = (3, 8, 8)


def model(num_blocks=2, **options):
    torch.manual_seed(0)
    options = {"head": partial(AuxHead, hidden=8), "optimizer": partial(SGD, lr=0.05, momentum=0.9), **options}
    network = partial(VGG, plan=(8, "M", 12))
    return DecoupledGreedy(network=network, image_shape=SHAPE, num_classes=10, num_blocks=num_blocks, **options)


def trained(num_blocks, steps, tmp_path, *callbacks, epochs=1, **options):
    made = model(num_blocks)
    some = Batches(batches(steps))
    train(made, tmp_path, some, callbacks, max_epochs=epochs, limit_train_batches=steps, **options)
    return made


class Slow(Callback):
    """The published rule, for the state of the whole model."""

    def __init__(self, every, steps):
        self.every, self.steps, self.slow = every, steps, None

    def state(self, module):
        return {n: v for n, v in module.state_dict().items() if v.is_floating_point()}

    def on_train_start(self, trainer, module):
        self.slow = {n: v.clone() for n, v in self.state(module).items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer, module, *_):
        step = trainer.global_step
        if step % self.every == 0:
            decay = 0.95**self.every * (step / self.steps) ** 3
            for name, fast in self.state(module).items():
                self.slow[name].lerp_(fast, 1 - decay)
                fast.copy_(self.slow[name])
        if step >= self.steps:
            for name, fast in self.state(module).items():
                fast.copy_(self.slow[name])


@pytest.mark.parametrize("steps", [6, 7])
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_lookahead_is_the_published_rule_and_all_blocks_share_it(num_blocks, steps, tmp_path):
    """At steps 3 and 6; after the seventh the slow weights of the sixth are taken."""
    ours = trained(num_blocks, steps, tmp_path, Lookahead(every=3))
    theirs = trained(num_blocks, steps, tmp_path, Slow(3, steps))
    plain = trained(num_blocks, steps, tmp_path)
    assert_equal_weights(ours, theirs)
    changed = [
        not torch.equal(a, b) for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True)
    ]
    assert sum(changed) > len(changed) * 0.7  # running statistics too


def test_a_resumed_run_ends_alike(tmp_path):
    whole = trained(2, 4, tmp_path, Lookahead(every=3), epochs=2)

    class Stop(Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.save_checkpoint(tmp_path / "first.ckpt")
            trainer.should_stop = True

    half = model()
    train(half, tmp_path, Batches(batches(4)), [Lookahead(every=3), Stop()], max_epochs=2, limit_train_batches=4)
    rest = model()
    resume = tmp_path / "first.ckpt"
    train(rest, tmp_path, Batches(batches(4)), [Lookahead(every=3)], resume, max_epochs=2, limit_train_batches=4)
    assert_equal_weights(rest, whole)


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match="end of the training"):
        trained(2, 2, tmp_path, Lookahead(), epochs=-1)
    with pytest.raises(UsageError, match="leave epochs_per_block out"):
        train(model(epochs_per_block=1), tmp_path, Batches(batches(2)), [Lookahead()])
    apart = model()
    apart.here = range(1)
    with pytest.raises(UsageError, match="leave BlockParallel out"):
        train(apart, tmp_path, Batches(batches(2)), [Lookahead()])
    closed = ClosedFormMLP((1, 8, 8), 10)
    with pytest.raises(UsageError, match="ClosedFormMLP has none"):
        train(closed, tmp_path, callbacks=[Lookahead()])
