"""Few labels: turns of images with and without them, the published loop by hand, no label that leaks, resume."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, LinearLR
from training import Recorder, assert_equal_weights, train

from datamodules.digits import Digits
from datamodules.files import DataError
from losses.errors import UsageError
from losses.outputs import SigmoidCrossEntropy
from models.methods.backprop import Backprop
from models.methods.semi_supervised_target import SemiSupervisedTarget
from models.networks.heads.classifiers import LinearHead
from models.networks.mlp import MLP

few = partial(Digits, batch_size=64, labels=40, labelled_batch_size=10)
network = partial(MLP, hidden=[12], batch_norm=False)


def made(**options):
    torch.manual_seed(0)
    options = {
        "pretraining_epochs": 2,
        "rate": 0.5,
        "optimizer": partial(SGD, lr=0.3),
        "unlabelled_optimizer": partial(SGD, lr=0.2),
        "pretraining_optimizer": partial(SGD, lr=0.1),
        "output_loss": SigmoidCrossEntropy,
        **options,
    }
    return SemiSupervisedTarget(network, (1, 8, 8), 10, **options)


whole = {"max_epochs": 6, "limit_train_batches": 1.0}


def test_images_with_and_without_labels_take_turns(tmp_path):
    recorder = Recorder()
    train(made(), tmp_path, few(), [recorder], **whole)
    kinds = [int(batch.labels[0]) >= 0 for batch in recorder.batches]
    per_epoch = [4, 4, 20, 4, 20, 4]  # 40 / 10; (1293 - 40) / 64
    expected = [labelled for count, labelled in zip(per_epoch, [1, 1, 0, 1, 0, 1], strict=True) for _ in range(count)]
    assert kinds == [bool(labelled) for labelled in expected]
    assert {len(b.labels) for b, labelled in zip(recorder.batches, kinds, strict=True) if labelled} == {10}
    assert all(b.labels.eq(-1).all() for b, labelled in zip(recorder.batches, kinds, strict=True) if not labelled)
    known, unknown = (
        torch.cat([b.indices for b, which in zip(recorder.batches, kinds, strict=True) if which == labelled])
        for labelled in (True, False)
    )
    assert len(known.unique()) == 40
    assert len(unknown.unique()) == 1253
    assert not set(known.tolist()) & set(unknown.tolist())
    labels = torch.cat([b.labels for b in recorder.batches[:4]])
    assert labels.bincount(minlength=10).tolist() == [4] * 10  # drawn class by class


def test_which_images_have_labels_depends_on_the_seed():
    drawn = []
    for seed in (0, 1):
        data = few(seed=seed)
        data.setup("fit")
        drawn.append(data.training_images.some_of_each_class(40, seed))
    assert not torch.equal(*drawn)


def test_blocks_learn_as_the_published_loop(tmp_path):
    """Rates by turn, winners that H corrects and that begin anew in each pass over images without labels."""
    model, recorder = made(), Recorder()
    layers = model.blocks[0].fc1[1], model.heads[0]
    weights = [p.detach().clone().requires_grad_() for layer in layers for p in layer.parameters()]
    train(model, tmp_path, few(), [recorder], **whole)
    rates = [0.1] * 8 + ([0.2] * 20 + [0.3] * 4) * 2
    for step, (batch, rate) in enumerate(zip(recorder.batches, rates, strict=True)):
        if step in (8, 32):
            wins = torch.zeros(10)
        w1, b1, w2, b2 = weights
        y = F.linear(F.linear(batch.images.flatten(1), w1, b1).relu(), w2, b2).sigmoid()
        labels = batch.labels
        if rate == 0.2:
            labels = torch.stack([(row - wins).argmax() for row in y.detach()])
            wins = wins + 0.5 * F.one_hot(labels, 10).float().mean(0)
        gradients = torch.autograd.grad(F.cross_entropy(y, labels), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= rate * gradient
    ours = [p for layer in layers for p in layer.parameters()]
    for weight, own in zip(weights, ours, strict=True):
        torch.testing.assert_close(own, weight, atol=1e-5, rtol=1e-4)


def test_each_turn_has_moments_and_a_schedule_of_its_own(tmp_path):
    """Rates as a schedule that counts epochs of its own kind says; Adam's steps are counted by kind."""
    adam = {name: partial(Adam, lr=1e-3) for name in ("optimizer", "unlabelled_optimizer", "pretraining_optimizer")}
    schedules = {
        "scheduler": partial(LinearLR, start_factor=0.7, end_factor=0.1, total_iters=2),
        "unlabelled_scheduler": partial(LinearLR, start_factor=0.1, end_factor=0.3, total_iters=2),
        "pretraining_scheduler": partial(ExponentialLR, gamma=0.5),
    }
    trainer = train(made(num_blocks=1, **adam, **schedules), tmp_path, few(), **whole)
    assert len(trainer.optimizers) == 3
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates == pytest.approx([1e-4, 3e-4, 2.5e-4])
    steps = [{int(state["step"]) for state in optimizer.state.values()} for optimizer in trainer.optimizers]
    assert steps == [{8}, {40}, {8}]


def test_hidden_labels_reach_nothing(tmp_path):
    """Other labels for the images that have none: the same weights."""
    models, data = [], few()
    data.setup("fit")
    known = data.training_images.some_of_each_class(40, 0)

    class Shuffled(Digits):
        def load(self, train):
            return super().load(train)

        @property
        def training_images(self):
            images = super().training_images
            if len(models):
                hidden = torch.ones(len(images), dtype=torch.bool)
                hidden[known] = False
                images = images.subset(torch.arange(len(images)))
                images.labels[hidden] = images.labels[hidden].flip(0)
            return images

        def _some(self, labelled):
            return picked[labelled]

    picked = {labelled: data._some(labelled) for labelled in (True, False)}
    for _ in range(2):
        model = made()
        train(model, tmp_path, partial(Shuffled, batch_size=64, labels=40, labelled_batch_size=10)(), **whole)
        models.append(model)
    assert_equal_weights(*models)


@pytest.mark.parametrize("stop", [6, 15, 30])
def test_resumed_runs_are_the_same(tmp_path, stop):
    """Stopped in the pretraining, and within a pass over images of either kind."""
    adam = {name: partial(Adam, lr=1e-3) for name in ("optimizer", "unlabelled_optimizer", "pretraining_optimizer")}
    straight, cut = made(**adam), made(**adam)
    train(straight, tmp_path, few(), **whole)
    save = ModelCheckpoint(tmp_path, every_n_train_steps=stop, save_top_k=1, save_weights_only=False, filename="cut")
    train(cut, tmp_path, few(), [save], enable_checkpointing=True, max_steps=stop, **whole)
    again = made(**adam)
    train(again, tmp_path, few(), resume=save.best_model_path or str(tmp_path / "cut.ckpt"), **whole)
    assert_equal_weights(straight, again)


def test_a_method_with_labels_trains_on_those_alone(tmp_path):
    recorder = Recorder()
    model = Backprop(network, (1, 8, 8), 10)
    train(model, tmp_path, few(), [recorder], limit_train_batches=1.0)
    assert len(torch.cat([batch.indices for batch in recorder.batches]).unique()) == 40
    assert all((batch.labels >= 0).all() for batch in recorder.batches)


def test_each_of_several_blocks_chooses_its_own_winners(tmp_path):
    """Two blocks: the second reads what the first hands on, and its winners are those of its own head."""
    torch.manual_seed(0)
    deeper = partial(MLP, hidden=[12, 9], batch_norm=False)
    model, recorder = SemiSupervisedTarget(deeper, (1, 8, 8), 10, 2, pretraining_epochs=1, head=LinearHead), Recorder()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = train(model, tmp_path, few(), [recorder], max_epochs=2, limit_train_batches=1.0)
    steps = [{int(state["step"]) for state in optimizer.state.values()} for optimizer in trainer.optimizers]
    assert steps == [set(), set(), {20}, {20}, {4}, {4}]  # of both blocks: with labels, without, pretraining
    assert not [name for name, p in model.named_parameters() if torch.equal(before[name], p)]
    first, second = (target.wins for target in model.targets)
    assert first.sum() == second.sum() == 1253
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "data", "fault", "words"),
    [
        ({}, {"labels": None}, DataError, "--data.labels 600"),
        ({}, {"labels": 5}, DataError, "5 of 1293 training images with labels are too few, .* from 10 to 1283"),
        ({}, {"labels": 1293}, DataError, "1293 of 1293 .* too many"),
        ({"scheduler": partial(ExponentialLR, gamma=0.5)}, {}, UsageError, "all together, or none"),
        ({"epochs_per_block": 2}, {}, UsageError, "epochs_per_block"),
        ({"unlabelled_optimizer": partial(SGD, lr=-1.0)}, {}, UsageError, "cannot train blocks"),
    ],
)
def test_what_cannot_be_trained_is_told(tmp_path, options, data, fault, words):
    with pytest.raises(fault, match=words):
        train(made(**options), tmp_path, few(**data))
