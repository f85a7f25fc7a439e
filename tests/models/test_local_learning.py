"""The loop: isolation, memory, step count, equality with plain loops, precision, bad losses."""

import copy
from functools import partial

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from training import assert_equal_weights, train

from datamodules.batch import Batch
from datamodules.digits import Digits
from experiments.measure.cost import network_cost
from losses.errors import NetworkError, UsageError
from models.local_learning import TrainingError
from models.methods.backprop import Backprop
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.mlp import MLP
from models.networks.vgg import VGG

SHAPE, CLASSES = (1, 8, 8), 10
small_vgg = partial(VGG, plan=(8, 8, "M", 16, 16))
make_sgd = partial(SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)


def decoupled(num_blocks, network=small_vgg, seed=0, **arguments):
    torch.manual_seed(seed)
    arguments = {"optimizer": make_sgd, "head": partial(AuxHead, hidden=16), **arguments}
    return DecoupledGreedy(network, SHAPE, CLASSES, num_blocks, **arguments)


def backprop(network=small_vgg, seed=0, **arguments):
    torch.manual_seed(seed)
    return Backprop(network, SHAPE, CLASSES, **{"optimizer": make_sgd, **arguments})


def batch(size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, *SHAPE, generator=generator)
    return Batch(images, torch.randint(CLASSES, (size,), generator=generator))


class Recorder(L.Callback):
    """Keeps the batches a run trained on."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(Batch(batch.images.clone(), batch.labels.clone()))


# -- isolation and memory -------------------------------------------------------------------------


@pytest.mark.parametrize("network", [small_vgg, partial(MLP, hidden=(12, 12, 12, 12))], ids=["vgg", "mlp"])
def test_loss_of_a_block_reaches_that_block_and_no_other(network, monkeypatch):
    model = decoupled(4, network, head=partial(AuxHead, convs=0))
    reached = []

    def backward_only(k, loss):
        loss.backward()
        reached.append({name for name, p in model.named_parameters() if p.grad is not None})
        assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.grad is not None)
        model.zero_grad()

    monkeypatch.setattr(model, "update_block", backward_only)
    model.training_step(batch(), 0)
    for k, names in enumerate(reached):
        assert names == {n for n, _ in model.named_parameters() if n.startswith((f"blocks.{k}.", f"heads.{k}."))}


def test_peak_of_a_step_is_the_largest_blocks_own_peak(monkeypatch):
    model = decoupled(3).train()
    alive_between_blocks = []

    def backward_only(k, loss):
        loss.backward()
        alive_between_blocks.append(meter.current)

    monkeypatch.setattr(model, "update_block", backward_only)
    with SavedTensorMeter([*model.parameters(), *model.buffers()]) as meter:
        model.training_step(batch(32), 0)
    cost = network_cost(model, 32)
    assert alive_between_blocks == [0, 0, 0]
    of_the_loss = 32 * CLASSES * 4 + 32 * 8 + 4  # log-probabilities, labels, sum of weights
    assert meter.peak == max(node.activation_bytes for node in cost.nodes) + of_the_loss
    assert meter.peak < cost.backprop_activation_bytes


def test_evaluation_moves_nothing(tmp_path):
    model = decoupled(2)
    trainer = train(model, tmp_path, max_epochs=1)
    before = copy.deepcopy(model.state_dict())
    trainer.validate(model, datamodule=Digits(batch_size=32), verbose=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# -- equality with plain loops ----------------------------------------------------------------------


def test_one_block_is_an_ordinary_training_loop_bit_for_bit(tmp_path):
    model = backprop(scheduler=partial(CosineAnnealingLR, T_max=2))
    torch.manual_seed(0)
    network = small_vgg(SHAPE, CLASSES).to(memory_format=torch.channels_last)
    recorder = Recorder()
    train(model, tmp_path, callbacks=[recorder])

    optimizer = make_sgd(network.parameters())
    schedule = CosineAnnealingLR(optimizer, T_max=2)
    for step, (images, labels, *_) in enumerate(recorder.batches):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        if (step + 1) % 4 == 0:
            schedule.step()

    assert len(recorder.batches) == 8
    assert torch.equal(model(recorder.batches[0].images), network(recorder.batches[0].images))
    for ours, theirs in zip(model.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_decoupled_greedy_with_one_block_is_backprop(tmp_path):
    one, other = decoupled(1), backprop()
    train(one, tmp_path)
    train(other, tmp_path)
    assert_equal_weights(one, other)


def test_blocks_equal_late_backward_with_separate_optimizers(tmp_path):
    """The slow, obvious version: all losses collected, one summed backward, then all steps."""
    model, reference = decoupled(3), decoupled(3)
    recorder = Recorder()
    train(model, tmp_path, callbacks=[recorder])

    optimizers = [make_sgd(reference.block_parameters(k)) for k in range(3)]
    for images, labels, *_ in recorder.batches:
        x, losses = images, []
        for block, head in zip(reference.blocks, reference.heads, strict=True):
            features = block(x)
            losses.append(F.cross_entropy(head(features), labels))
            x = features.detach()
        sum(losses).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert_equal_weights(model, reference)


def test_gradient_checkpointing_trains_like_backprop(tmp_path):
    plain = backprop(partial(MLP, hidden=(16, 16, 16), batch_norm=False))
    checkpointed = backprop(partial(MLP, hidden=(16, 16, 16), batch_norm=False), checkpoint_segments=2)
    train(plain, tmp_path)
    train(checkpointed, tmp_path)
    for ours, theirs in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_checkpointed_network_has_the_weights_of_a_plain_one():
    plain, checkpointed = backprop(), backprop(checkpoint_segments=2)
    assert_equal_weights(plain, checkpointed)
    with pytest.raises(NetworkError, match="4 units"):
        backprop(checkpoint_segments=5)


def test_compiled_blocks_train_like_plain_ones(tmp_path):
    network = partial(MLP, hidden=(16, 16), batch_norm=False)
    plain = decoupled(2, network, head=partial(AuxHead, convs=0, fcs=1))
    compiled = decoupled(2, network, head=partial(AuxHead, convs=0, fcs=1), compile=True)
    train(plain, tmp_path, max_epochs=1)
    train(compiled, tmp_path, max_epochs=1)
    assert compiled.blocks[0]._compiled_call_impl is not None
    assert list(plain.state_dict()) == list(compiled.state_dict())
    for ours, theirs in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


# -- one optimizer per block, one count per batch ------------------------------------------------------


@pytest.mark.parametrize("num_blocks", [1, 4])
def test_global_step_counts_batches(num_blocks, tmp_path):
    recorder = Recorder()
    trainer = train(
        decoupled(num_blocks), tmp_path, callbacks=[recorder], max_epochs=-1, max_steps=10, limit_train_batches=1.0
    )
    assert trainer.global_step == len(recorder.batches) == 10
    assert len(trainer.optimizers) == num_blocks


def test_every_block_has_its_own_optimizer_over_block_and_head(tmp_path):
    model = decoupled(3)
    trainer = train(model, tmp_path, max_epochs=1)
    held = [{id(p) for group in o.param_groups for p in group["params"]} for o in trainer.optimizers]
    wanted = [{id(p) for p in [*model.blocks[k].parameters(), *model.heads[k].parameters()]} for k in range(3)]
    assert held == wanted
    assert sum(map(len, held)) == len(list(model.parameters()))


@pytest.mark.parametrize(("interval", "expected"), [("epoch", 0.1 * 0.5**2), ("step", 0.1 * 0.5**8)])
def test_learning_rates_after_two_epochs(interval, expected, tmp_path):
    model = decoupled(
        3,
        optimizer=partial(SGD, lr=0.1),
        scheduler=partial(StepLR, step_size=1, gamma=0.5),
        scheduler_interval=interval,
    )
    trainer = train(model, tmp_path)  # 2 epochs of 4 batches
    assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == pytest.approx([expected] * 3)


def test_clip_bounds_the_gradient_of_each_block(tmp_path):
    norms = []

    class Norms(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            for k, optimizer in enumerate(pl_module._optimizers()[0]):
                optimizer.register_step_post_hook(
                    lambda o, *_, k=k: norms.append(
                        nn.utils.get_total_norm([p.grad for group in o.param_groups for p in group["params"]]).item()
                    )
                )

    train(decoupled(3, clip=0.01), tmp_path, callbacks=[Norms()], max_epochs=1, limit_train_batches=1)
    assert len(norms) == 3
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


# -- precision ---------------------------------------------------------------------------------------


def test_bf16_mixed_trains(tmp_path):
    model = decoupled(3)
    before = copy.deepcopy(model.state_dict())
    trainer = train(model, tmp_path, precision="bf16-mixed")
    assert trainer.global_step == 8
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert not torch.equal(before["blocks.2.conv4.0.weight"], model.state_dict()["blocks.2.conv4.0.weight"])


def test_float16_clips_unscaled_gradients_and_steps_every_block(tmp_path):
    """With a loss scale of 2^12 a clip of scaled gradients would leave almost no update."""

    def updates(**trainer_arguments):
        model = decoupled(3, clip=0.5, optimizer=partial(SGD, lr=0.1))
        before = copy.deepcopy(model.state_dict())
        train(model, tmp_path, max_epochs=1, limit_train_batches=1, **trainer_arguments)
        names = [name for name, _ in model.named_parameters()]
        return {name: model.state_dict()[name] - before[name] for name in names}

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    half = updates(plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    full = updates()
    for k in range(3):
        ours, theirs = (
            torch.cat([delta.flatten() for name, delta in all_.items() if f"s.{k}." in name]) for all_ in (half, full)
        )
        assert ours.norm() == pytest.approx(theirs.norm().item(), rel=0.05)


def test_float16_with_a_fused_optimizer_is_refused(tmp_path):
    model = decoupled(2, optimizer=partial(SGD, lr=0.1, fused=True))
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(UsageError, match="fused: false"):
        train(model, tmp_path, plugins=[plugin])


# -- watching ---------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run_and_names_block_and_step(tmp_path):
    model = decoupled(3)
    local_loss = model.local_loss

    def poisoned(k, features, batch):
        loss = local_loss(k, features, batch)
        return loss * float("inf") if k == 1 and model.global_step == 2 else loss

    model.local_loss = poisoned
    with pytest.raises(TrainingError, match=r"block2 is inf at step 3"):
        train(model, tmp_path)


def test_three_predictions_are_evaluated(tmp_path):
    model = decoupled(3)
    trainer = train(model, tmp_path, limit_val_batches=1.0)
    figures = trainer.callback_metrics
    data = trainer.datamodule
    probabilities, labels = [], []
    model.eval()
    with torch.no_grad():
        for raw in data.val_dataloader():
            images, targets, *_ = data.on_after_batch_transfer(raw, 0)
            probabilities.append(torch.stack([z.softmax(1) for z in model.block_logits(images).values()]))
            labels.append(targets)
    p, y = torch.cat(probabilities, dim=1), torch.cat(labels)
    own = [(p[k].argmax(1) == y).float().mean().item() for k in range(3)]
    together = ((p[0] + 2 * p[1] + 4 * p[2]).argmax(1) == y).float().mean().item()
    assert [figures[f"val/block{k}/top1"].item() for k in (1, 2, 3)] == pytest.approx(own)
    assert figures["val/top1"].item() == pytest.approx(own[-1])
    assert figures["val/ensemble/top1"].item() == pytest.approx(together)


def test_predictions_are_probabilities_of_the_last_block():
    model = decoupled(2).eval()
    images = batch().images
    probabilities = model.predict_step(batch(), 0)
    torch.testing.assert_close(probabilities, model.block_logits(images)["block2"].softmax(1))


def test_cut_by_name_is_kept():
    model = decoupled(2, cut=Cut(after=["conv1"]))
    assert [list(dict(b.named_children())) for b in model.blocks] == [["conv1"], ["conv2", "conv3", "conv4"]]


# -- one block after the other --------------------------------------------------------------------------


class States(L.Callback):
    """Keeps weights and buffers after every epoch, and the learning rates in it."""

    def __init__(self):
        self.states, self.rates = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.states.append(copy.deepcopy(pl_module.state_dict()))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])

    def on_train_end(self, trainer, pl_module):
        self.states.append(copy.deepcopy(pl_module.state_dict()))


def moved(before, after, part):
    return {name for name in before if name.startswith(part) and not torch.equal(before[name], after[name])}


def test_sequential_training_moves_one_block_at_a_time_and_freezes_it_then(tmp_path):
    model = decoupled(3, epochs_per_block=2, scheduler=lambda optimizer: StepLR(optimizer, 1, 0.1))
    states = States()
    trainer = train(model, tmp_path, callbacks=[states], max_epochs=6, limit_val_batches=1)
    assert trainer.global_step == 6 * 4
    for epoch, (before, after) in enumerate(zip(states.states, states.states[1:], strict=False)):
        learner = epoch // 2
        for k in range(3):
            names = moved(before, after, f"blocks.{k}.") | moved(before, after, f"heads.{k}.")
            if k == learner:
                assert all(name in names for name, _ in model.named_parameters() if name.startswith(f"blocks.{k}."))
                assert any(name.endswith("running_mean") for name in names)
            else:
                assert not names  # neither weights nor BatchNorm statistics
    # Each block's schedule begins when the block does.
    assert [rates[k] for k in range(3) for rates in states.rates[2 * k : 2 * k + 2]] == pytest.approx([0.05, 0.005] * 3)
    assert not any(p.requires_grad for p in [*model.blocks[:2].parameters(), *model.heads[:2].parameters()])
    assert all(p.requires_grad for p in model.block_parameters(2))


def test_first_block_of_a_sequence_learns_as_it_does_alone(tmp_path):
    one_by_one = decoupled(3, epochs_per_block=1)
    together = decoupled(3)
    states = States()
    train(one_by_one, tmp_path, callbacks=[states], max_epochs=3)
    train(together, tmp_path, max_epochs=1)
    for name, tensor in together.state_dict().items():
        if name.startswith(("blocks.0.", "heads.0.")):
            assert torch.equal(tensor, states.states[1][name]), name


@pytest.mark.parametrize("epochs", [2, 3])  # between two blocks, and within one
def test_sequential_training_resumes_exactly(epochs, tmp_path):
    whole = decoupled(3, epochs_per_block=2)
    train(whole, tmp_path, max_epochs=6)
    half = decoupled(3, epochs_per_block=2)
    train(half, tmp_path, max_epochs=6, callbacks=[_SaveAfter(epochs, tmp_path / "half.ckpt")])
    resumed = decoupled(3, epochs_per_block=2, seed=5)
    train(resumed, tmp_path, max_epochs=6, resume=tmp_path / "half.ckpt")
    assert_equal_weights(whole, resumed)


class _SaveAfter(L.Callback):
    def __init__(self, epochs, path):
        self.epochs, self.path = epochs, path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch + 1 == self.epochs:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("epochs_per_block", "message"), [(0, "at least 1"), (3, r"take 9 epochs: .* or change epochs_per_block\.$")]
)
def test_impossible_sequences_are_refused(epochs_per_block, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(decoupled(3, epochs_per_block=epochs_per_block), tmp_path, max_epochs=8)
