"""The loop: isolation, memory, step count, equality with plain loops, precision, bad losses."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision, Precision
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from training import Recorder, assert_equal_weights, assert_isolated, train

from datamodules.batch import Batch
from experiments.measure.cost import network_cost
from experiments.measure.workbench import plain_steps
from losses.errors import NetworkError, UsageError
from models.local_learning import TrainingError
from models.methods.backprop import Backprop
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.predsim import PredSim
from models.networks.heads.classifiers import AuxHead, LinearHead
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.mlp import MLP
from models.networks.vgg import VGG

SHAPE, CLASSES = (1, 8, 8), 10
small_vgg = partial(VGG, plan=(8, 8, "M", 16, 16))
make_sgd = partial(SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
halve = partial(StepLR, step_size=1, gamma=0.5)


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


@pytest.mark.parametrize(
    ("make", "ends", "heads"),
    [
        (decoupled, {}, ["aux", "own"]),
        (decoupled, {"last_head": LinearHead}, ["aux", "linear"]),
        (decoupled, {"final_head": LinearHead}, ["aux", "aux", "linear"]),
        (decoupled, {"last_head": LinearHead, "final_head": AuxHead}, ["aux", "linear", "aux"]),
        (lambda _, **ends: backprop(**ends), {}, ["own"]),
        (lambda _, **ends: backprop(**ends), {"last_head": AuxHead}, ["aux"]),
    ],
)
def test_heads_at_the_end(make, ends, heads):
    """The last one predicts; each loss reaches its own block and head only, a final head's that head alone."""
    model = make(2, **ends)
    names = {AuxHead: "aux", LinearHead: "linear"}
    assert [names.get(type(head), "own") for head in model.heads] == heads
    assert list(model.block_logits(batch().images)) == ["block1", "block2", "final"][: len(heads)]
    assert_isolated(model, batch())


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


# -- equality with plain loops ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [backprop, partial(decoupled, 1)], ids=["backprop", "decoupled"])
def test_one_block_is_an_ordinary_training_loop_bit_for_bit(make, tmp_path):
    model = make(scheduler=partial(CosineAnnealingLR, T_max=2))
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
    network = partial(MLP, hidden=(16, 16, 16), batch_norm=False)
    plain, checkpointed = backprop(network), backprop(network, checkpoint_segments=2)
    assert_equal_weights(plain, checkpointed)
    assert_trains_alike(plain, checkpointed, tmp_path)
    with pytest.raises(NetworkError, match="4 units"):
        backprop(checkpoint_segments=5)


@torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True)
def test_compiled_blocks_train_like_plain_ones_and_none_is_left_out(monkeypatch):
    """Four parts in four forms: batches of two sizes, training and evaluation. Torch stops at eight by default."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # code of torch's own takes 10 s
    torch.compiler.reset()
    network = partial(MLP, hidden=(16, 16), batch_norm=False)
    models = [decoupled(2, network, head=partial(AuxHead, convs=0, fcs=1), compile=c) for c in (False, True)]
    assert all(part._compiled_call_impl for part in [*models[1].blocks, *models[1].heads])
    for model in models:
        for size in (16, 7):
            next(plain_steps(model, batch(size)))
            with torch.no_grad():
                model.block_logits(batch(size).images)
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_compilation_is_refused_where_it_does_not_pay(tmp_path):
    with pytest.raises(UsageError, match=r"on a CPU: a step of ResNet-32 .*--model.compile false"):
        train(decoupled(2, compile=True), tmp_path)


def assert_trains_alike(one, other, tmp_path):
    for model in (one, other):
        train(model, tmp_path, max_epochs=1)
    theirs = dict(other.named_parameters())
    assert list(one.state_dict()) == list(other.state_dict())
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter, theirs[name])


# -- one optimizer per block, one count per batch ------------------------------------------------------


@pytest.mark.parametrize("num_blocks", [1, 4])
def test_every_block_has_an_optimizer_and_batches_are_counted(num_blocks, tmp_path):
    model, recorder = decoupled(num_blocks), Recorder()
    trainer = train(model, tmp_path, callbacks=[recorder], max_epochs=-1, max_steps=10, limit_train_batches=1.0)
    assert trainer.global_step == len(recorder.batches) == 10
    held = [{id(p) for group in o.param_groups for p in group["params"]} for o in trainer.optimizers]
    blocks = zip(model.blocks, model.heads, strict=True)
    assert held == [{id(p) for p in [*block.parameters(), *head.parameters()]} for block, head in blocks]


def test_learning_rates_may_change_with_every_step(tmp_path):
    model = decoupled(3, scheduler=halve, scheduler_interval="step")
    trainer = train(model, tmp_path)  # 2 epochs of 4 batches
    assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == pytest.approx([0.05 * 0.5**8] * 3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_every_block_moves_as_far_as_clipping_allows_in_any_precision(precision, tmp_path):
    """With float16's loss scale of 2^12 a clip of scaled gradients would leave almost no update."""
    model = decoupled(3, clip=0.01, optimizer=partial(SGD, lr=1.0))
    before = copy.deepcopy(model)
    train(model, tmp_path, max_epochs=1, limit_train_batches=1, plugins=[in_precision(precision)])
    for k in range(3):
        pairs = zip(model.block_parameters(k), before.block_parameters(k), strict=True)
        update = nn.utils.get_total_norm([after - start for after, start in pairs])
        assert update.item() == pytest.approx(0.01, rel=1e-3)


def in_precision(name):
    if name == "32-true":
        return Precision()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12) if name == "16-mixed" else None
    return MixedPrecision(name, "cpu", scaler)


def test_float16_with_a_fused_optimizer_is_refused(tmp_path):
    model = decoupled(2, optimizer=partial(SGD, lr=0.1, fused=True))
    with pytest.raises(UsageError, match="fused: false"):
        train(model, tmp_path, plugins=[in_precision("16-mixed")])


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


def test_three_predictions_are_evaluated_and_nothing_moves(tmp_path):
    model = decoupled(3)
    trainer = train(model, tmp_path, max_epochs=1, limit_val_batches=1.0)
    before, data = copy.deepcopy(model.state_dict()), trainer.datamodule
    (figures,) = trainer.validate(model, datamodule=data, verbose=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    images, labels = torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])
    model.eval()
    with torch.no_grad():
        p = torch.stack([z.softmax(1) for z in model.block_logits(images).values()])
        torch.testing.assert_close(model.predict_step(Batch(images, labels), 0), p[2])
    own = [(p[k].argmax(1) == labels).float().mean().item() for k in range(3)]
    together = ((p[0] + 2 * p[1] + 4 * p[2]).argmax(1) == labels).float().mean().item()
    assert [figures[f"val/block{k}/top1"] for k in (1, 2, 3)] == pytest.approx(own)
    assert figures["val/top1"] == pytest.approx(own[-1])
    assert figures["val/ensemble/top1"] == pytest.approx(together)


# -- one block after the other --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    """A model of three blocks that have learned for two epochs each, its first weights, a checkpoint of every epoch."""
    folder = tmp_path_factory.mktemp("sequence")
    model = decoupled(3, epochs_per_block=2, scheduler=halve)
    before = copy.deepcopy(model.state_dict())
    every_epoch = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    train(model, folder, callbacks=[every_epoch], max_epochs=6, enable_checkpointing=True, log_every_n_steps=4)
    return model, before, [folder / f"epoch={epoch}.ckpt" for epoch in range(6)]


def test_sequential_training_moves_one_block_at_a_time_and_freezes_it_then(sequence):
    model, before, checkpoints = sequence
    for epoch, checkpoint in enumerate(torch.load(path, weights_only=False) for path in checkpoints):
        assert checkpoint["global_step"] == 4 * (epoch + 1)
        after, k = checkpoint["state_dict"], epoch // 2
        own = {name for name in before if name.startswith((f"blocks.{k}.", f"heads.{k}."))}
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved <= own  # neither weights nor BatchNorm statistics of other blocks
        assert moved >= own & {name for name, _ in model.named_parameters()}
        assert any(name.endswith("running_mean") for name in moved)
        # Each block's schedule begins when the block does.
        rates = [state["param_groups"][0]["lr"] for state in checkpoint["optimizer_states"]]
        assert rates == pytest.approx([0.05 * 0.5 ** min(max(epoch + 1 - 2 * j, 0), 2) for j in range(3)])
        before = after
    assert not any(p.requires_grad for p in [*model.blocks[:2].parameters(), *model.heads[:2].parameters()])
    assert all(p.requires_grad for p in model.block_parameters(2))
    assert model.latest["train/block3/lr"] == pytest.approx(0.05 / 2)  # logged is the learner's own


def test_first_block_of_a_sequence_learns_as_it_does_alone(sequence, tmp_path):
    together, first = decoupled(3, scheduler=halve), torch.load(sequence[2][1], weights_only=False)["state_dict"]
    train(together, tmp_path)
    for name, tensor in together.state_dict().items():
        if name.startswith(("blocks.0.", "heads.0.")):
            assert torch.equal(tensor, first[name]), name


@pytest.mark.parametrize("epochs", [2, 3])  # between two blocks, and within one
def test_sequential_training_resumes_exactly(epochs, sequence, tmp_path):
    whole, _, checkpoints = sequence
    resumed = decoupled(3, epochs_per_block=2, scheduler=halve, seed=5)
    train(resumed, tmp_path, max_epochs=6, resume=checkpoints[epochs - 1])
    assert_equal_weights(whole, resumed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs_per_block": 0}, "at least 1"),
        ({"epochs_per_block": 3}, r"3 epochs each take 9 epochs: .* or change epochs_per_block\.$"),
        ({"epochs_per_block": [4, 2, 1]}, r"blocks of \[4, 2, 1\] epochs take 7 epochs"),
        (
            {"epochs_per_block": [4, 2, 2], "scheduler": halve, "scheduler_interval": "step"},
            r"different epochs_per_block, \[4, 2, 2\], .* set --model.scheduler_interval epoch",
        ),
    ],
)
def test_impossible_sequences_are_refused(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(decoupled(3, **options), tmp_path, max_epochs=8)


def test_blocks_with_fewer_epochs_go_through_the_same_schedule_in_longer_strides(tmp_path):
    rates = []

    def look(trainer, model):
        rates.append(trainer.optimizers[model.learners.start].param_groups[0]["lr"] / 0.05)

    model = decoupled(3, epochs_per_block=[4, 2, 3], scheduler=halve)
    trainer = train(model, tmp_path, callbacks=[LambdaCallback(on_train_epoch_start=look)], max_epochs=9)
    assert rates == pytest.approx([1, 1 / 2, 1 / 4, 1 / 8, 1, 1 / 4, 1, 1 / 2, 1 / 4])
    assert [config.scheduler.last_epoch for config in trainer.lr_scheduler_configs] == [4, 4, 4]


@pytest.mark.parametrize(("steps", "learned"), [(3, 1), (8, 1), (9, 1), (12, 2), (23, 3)])
def test_blocks_that_have_had_no_epoch_yet_are_not_evaluated(steps, learned, tmp_path):
    """Two epochs of four steps a block; also of a checkpoint, and of one that does not say how many have learned."""
    model, names = decoupled(3, epochs_per_block=2), [f"block{k}" for k in range(1, learned + 1)]
    trainer = train(model, tmp_path, max_epochs=6, max_steps=steps)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    checkpoint = torch.load(tmp_path / "stopped.ckpt", weights_only=False)
    loaded = decoupled(3, epochs_per_block=2, seed=7)
    loaded.on_load_checkpoint(checkpoint)
    loaded.load_state_dict(checkpoint["state_dict"])
    images = torch.rand(4, *SHAPE)
    for one in (model.eval(), loaded.eval()):
        logits = one.block_logits(images)
        assert list(logits) == one.learned_blocks == names
        assert torch.equal(one(images), logits[names[-1]])
    assert not torch.equal(logits[names[-1]], decoupled(3, seed=7).block_logits(images)[names[-1]])
    del checkpoint["learned"]
    checkpoint["epoch"] = (learned - 1) * 2
    loaded.on_load_checkpoint(checkpoint)
    assert loaded.learned_blocks == names
    assert (model.monitor, decoupled(3).monitor) == ("val/block3/top1", "val/top1")


def test_of_blocks_that_predict_nothing_a_final_head_is_waited_for(tmp_path):
    options = {"num_blocks": 2, "beta": 1.0, "epochs_per_block": 1, "optimizer": make_sgd}
    model = PredSim(small_vgg, SHAPE, CLASSES, **options)
    trainer = train(model, tmp_path, max_epochs=3, max_steps=4)
    assert not any(name.startswith("val/") for name in trainer.callback_metrics)
    with pytest.raises(UsageError, match="Only 1 of 3 parts of the network have learned"):
        model(torch.rand(4, *SHAPE))
    trainer = train(model, tmp_path, max_epochs=3)
    assert "val/final/top1" in trainer.callback_metrics
