"""Blocks that learn one after the other: schedule, heads, regularization, what they read from a feature store."""

import math
import os
from collections import Counter
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
import training
from lightning.pytorch.callbacks import LambdaCallback
from torch.optim import SGD
from torch.utils.data import DataLoader
from training import assert_equal_weights, mapped_files_in

from datamodules.augment import Augment
from datamodules.batch import Batch
from datamodules.digits import Digits
from experiments.callbacks.meter import Meter
from losses.errors import NetworkError, UsageError
from models.methods.backprop import Backprop
from models.methods.layerwise import Layerwise
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead
from models.networks.vgg import VGG
from models.parts.feature_store import FeatureStore
from models.parts.regularization import Regularization

SHAPE, CLASSES = (1, 8, 8), 10
IMAGES = torch.rand(1, *SHAPE)
OPTIONS = {
    "network": partial(VGG, plan=(4, "M", 8, 8)),
    "image_shape": SHAPE,
    "num_classes": CLASSES,
    "optimizer": partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
}


def layerwise(seed=0, **options):
    torch.manual_seed(seed)
    small = {"head": partial(AuxHead, convs=1, fcs=1, hidden=8), "epochs_per_block": 2}
    return Layerwise(**(OPTIONS | small | options))


def train(model, tmp_path, callbacks=(), resume=None, data=None, **arguments):
    data = data or Digits(batch_size=32, augment=Augment())
    arguments = {"max_epochs": 6, "limit_train_batches": 3} | arguments
    return training.train(model, tmp_path, data, callbacks, resume, **arguments)


# -- the schedule --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({}, [1, 1, 1]),
        ({"units_per_block": 2}, [2, 1]),
        ({"units_per_block": 3}, [3]),
        ({"num_blocks": 2, "cut": Cut(after=["conv1"])}, [1, 2]),
    ],
)
def test_blocks_have_as_many_units_as_asked(options, lengths):
    assert [len(block) for block in layerwise(**options).blocks] == lengths


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units_per_block": 0}, "block of 0 units .* network of 3 "),
        ({"units_per_block": 4}, "block of 4 units .* network of 3 "),
        ({"units_per_block": 1, "num_blocks": 2}, "units_per_block, here 1, or by num_blocks, here 2, not by both"),
    ],
)
def test_blocks_that_the_network_cannot_give_are_refused(options, message):
    with pytest.raises(NetworkError, match=message):
        layerwise(**options)


def test_one_block_of_all_units_is_backpropagation_bit_for_bit(tmp_path):
    whole = layerwise(units_per_block=3, epochs_per_block=2)
    torch.manual_seed(0)
    backprop = Backprop(**OPTIONS)
    for model in (whole, backprop):
        train(model, tmp_path, max_epochs=2, data=Digits(batch_size=32, augment=Augment(pad=1)))
    assert_equal_weights(whole, backprop)


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    """Three blocks of two epochs each: the model, its figures, and what there was at the end of every epoch."""
    epochs = []

    def look(trainer, model):
        figures = trainer.callback_metrics
        model.eval()
        now = SimpleNamespace(
            has_state=[len(o.state) > 0 for o in trainer.optimizers],
            weight_decay=[o.param_groups[0]["weight_decay"] for o in trainer.optimizers],
            factors=[any("parametrizations" in name for name, _ in block.named_parameters()) for block in model.blocks],
            names=list(model.block_logits(IMAGES)),
            accuracies={name: float(figures[f"val/{name}"]) for name in ("top1", f"block{model.learned}/top1")},
            logits=model(IMAGES),
        )
        model.train()
        epochs.append(now)

    model = layerwise(regularization=Regularization(weight_decay=4, overparameterize=3))
    callbacks = [LambdaCallback(on_train_epoch_end=look), meter := Meter()]
    trainer = train(model, tmp_path_factory.mktemp("sequence"), callbacks)
    return SimpleNamespace(model=model, epochs=epochs, figures=trainer.callback_metrics, seconds=meter.seconds)


def test_finished_heads_and_their_optimizers_state_are_dropped(sequence):
    assert [epoch.has_state for epoch in sequence.epochs] == [[k == e // 2 for k in range(3)] for e in range(6)]
    assert [len(list(head.parameters())) > 0 for head in sequence.model.heads] == [False, False, True]


def test_accuracy_is_that_of_the_block_that_learns(sequence):
    for number, epoch in enumerate(sequence.epochs):
        name = f"block{1 + number // 2}"
        assert epoch.names == [name]
        assert epoch.accuracies["top1"] == epoch.accuracies[f"{name}/top1"]
    seconds = [float(sequence.figures[f"train/block{k}/seconds"]) for k in (1, 2, 3)]
    assert min(seconds) > 0
    assert sum(seconds) == pytest.approx(sequence.seconds)


def test_the_best_checkpoint_is_judged_by_the_last_block_alone(sequence):
    assert sequence.model.monitor == "val/block3/top1"


def test_weight_decay_is_raised_for_every_block(sequence):
    assert sequence.epochs[0].weight_decay == pytest.approx([4e-3] * 3)
    assert [epoch.weight_decay[e // 2] for e, epoch in enumerate(sequence.epochs)] == pytest.approx([4e-3] * 6)


def test_blocks_are_overparameterized_until_they_have_learned(sequence):
    assert [epoch.factors for epoch in sequence.epochs] == [[k >= e // 2 for k in range(3)] for e in range(6)]
    assert set(sequence.model.blocks.state_dict()) == set(layerwise().blocks.state_dict())
    torch.testing.assert_close(sequence.model.eval()(IMAGES), sequence.epochs[-1].logits)


def test_kept_heads_predict_alone_and_together(tmp_path):
    model = layerwise(keep_heads=True)
    trainer = train(model, tmp_path, limit_test_batches=2)
    assert list(model.block_logits(IMAGES)) == ["block1", "block2", "block3"]
    figures = trainer.test(model, datamodule=trainer.datamodule, verbose=False)[0]
    assert {"test/block1/top1", "test/block2/top1", "test/block3/top1", "test/ensemble/top1"} < set(figures)


@pytest.mark.parametrize(
    ("steps", "learned", "kept"),
    [(2, 1, [0, 1, 2]), (6, 1, [0, 1, 2]), (8, 1, [0, 1, 2]), (9, 2, [1, 2]), (14, 2, [1, 2]), (18, 3, [2])],
    ids=["first epoch", "between blocks", "next one's first epoch", "that one done", "again", "all"],
)
def test_a_block_predicts_until_the_next_one_has_had_an_epoch(steps, learned, kept, tmp_path):
    """Two epochs of three steps a block; also of a checkpoint."""
    factors = Regularization(overparameterize=2)
    model, loaded = layerwise(regularization=factors), layerwise(7, regularization=factors)
    trainer = train(model, tmp_path, max_steps=steps, limit_test_batches=2)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    tested = trainer.test(model, datamodule=trainer.datamodule, verbose=False)[0]
    assert tested["test/top1"] == tested[f"test/block{learned}/top1"]
    checkpoint = torch.load(tmp_path / "stopped.ckpt")
    loaded.on_load_checkpoint(checkpoint)
    loaded.load_state_dict(checkpoint["state_dict"])
    images = torch.rand(4, *SHAPE)
    with torch.no_grad():
        features = [*model.eval().walk(images)]
        right = model.heads[learned - 1](features[learned - 1])
        for one in (model, loaded.eval()):
            assert [k for k, head in enumerate(one.heads) if list(head.parameters())] == kept
            assert list(one.block_logits(images)) == [f"block{learned}"]
            torch.testing.assert_close(one.block_logits(images)[f"block{learned}"], right)
            torch.testing.assert_close(one(images), right)


def test_a_checkpoint_of_before_that_lacks_its_blocks_head_is_judged_by_the_next_one():
    """They did not say how many blocks have learned, and heads were dropped as soon as theirs had."""
    weights, model = layerwise().state_dict(), layerwise()
    one_dropped = {name: weight for name, weight in weights.items() if not name.startswith("heads.0.")}
    for epoch, learned in ((1, 2), (2, 2), (5, 3)):
        model.take_shape_of({"state_dict": one_dropped, "epoch": epoch})
        assert model.learned == learned
    kept = layerwise(keep_heads=True)
    kept.take_shape_of({"state_dict": weights, "epoch": 2})
    assert list(kept.block_logits(IMAGES)) == ["block1", "block2"]


def test_later_blocks_have_fewer_epochs(tmp_path):
    seconds = Meter()
    model = layerwise(epochs_per_block=[3, 2, 1], store=FeatureStore(3), optimizer=OPTIONS["optimizer"])
    passes = LambdaCallback(on_train_epoch_end=lambda trainer, model: read.append(model._inputs.passes))
    read = []
    trainer = train(model, tmp_path, [seconds, passes])
    assert read == [0, 0, 0, 2, 2, 1]  # versions that are stored: as many as are still read
    assert [f"val/block{k}/top1" in trainer.callback_metrics for k in (1, 2, 3)] == [True] * 3
    times = [float(trainer.callback_metrics[f"train/block{k}/seconds"]) for k in (1, 2, 3)]
    assert sum(times) == pytest.approx(seconds.seconds)
    assert [len(list(head.parameters())) > 0 for head in model.heads] == [False, False, True]


@pytest.mark.parametrize("store", [None, FeatureStore(passes=2)], ids=["computed", "stored"])
def test_resumes_exactly_inside_every_block_whatever_its_batches(store, tmp_path):
    def run(seed, callbacks=(), resume=None):
        regularization = Regularization(weight_decay=2, input_dropout=0.1, input_noise=0.1, overparameterize=2)
        model = layerwise(seed, store=store, regularization=regularization)
        data = Digits(batch_size=400, batch_sizes={2: 600, 3: 1200}, augment=Augment(pad=1))
        train(model, tmp_path, callbacks, resume, data, limit_train_batches=1.0)
        return model

    def save(trainer, model):
        trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")
        steps.append(trainer.global_step)

    steps = []
    whole = run(0, [LambdaCallback(on_train_epoch_end=save)])
    assert steps == [4, 8, 11, 13, 15, 17]
    for epoch in (0, 1, 2, 4):
        assert_equal_weights(whole, run(7, resume=tmp_path / f"{epoch}.ckpt"))


# -- regularization ------------------------------------------------------------------------------------


def test_a_factor_on_no_weight_decay_is_refused(tmp_path):
    plain, raised = partial(SGD, lr=0.05), Regularization(weight_decay=3)
    with pytest.raises(UsageError, match=r"weight_decay 3 is a factor .* --model.optimizer.weight_decay"):
        train(layerwise(optimizer=plain, regularization=raised), tmp_path)
    train(layerwise(optimizer=plain), tmp_path, fast_dev_run=True)  # without a factor it may be 0


@pytest.mark.parametrize(
    "regularization", [Regularization(input_dropout=0.5), Regularization(input_noise=0.5)], ids=["dropout", "noise"]
)
def test_only_the_input_of_the_block_that_learns_is_disturbed(regularization, monkeypatch):
    model = layerwise(regularization=regularization)
    monkeypatch.setattr(Layerwise, "learners", property(lambda self: range(1, 2)))
    x = [torch.rand(4, *shape) for shape in ((1, 8, 8), (4, 4, 4), (8, 4, 4))]
    for k, block in enumerate(model.train().blocks):
        assert torch.equal(model.block_output(k, x[k]), block(x[k])) == (k != 1)
    model.eval()
    assert torch.equal(model.block_output(1, x[1]), model.blocks[1](x[1]))


@pytest.mark.parametrize(
    "wrong", [{"weight_decay": -1}, {"input_noise": -0.1}, {"input_dropout": 1.0}, {"overparameterize": 0}]
)
def test_impossible_regularization_is_refused(wrong):
    with pytest.raises(UsageError, match=r"at least 0 and input_dropout between|1 \(plain\) or more"):
        Regularization(**wrong)


# -- the feature store ---------------------------------------------------------------------------------


def test_a_store_changes_nothing_but_the_time_without_augmentation(tmp_path):
    folder = tmp_path / "store"
    computed, stored = layerwise(), layerwise(store=FeatureStore(folder=str(folder)))
    train(computed, tmp_path)
    files = []
    train(stored, tmp_path, [LambdaCallback(on_train_epoch_end=lambda *_: files.append(mapped_files_in(folder)))])
    for name, tensor in computed.state_dict().items():
        torch.testing.assert_close(stored.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    assert files == [0, 0, 1, 1, 1, 1]
    assert not os.listdir(folder)


def test_epochs_of_a_block_read_one_pass_after_the_other(monkeypatch):
    model = layerwise(store=FeatureStore(2), epochs_per_block=[4, 1, 3])
    monkeypatch.setattr(model._inputs, "read", lambda epoch, images, indices: epoch)
    read = []
    for epoch in range(8):
        monkeypatch.setattr(Layerwise, "current_epoch", epoch)
        read.append(model.step_input(Batch(IMAGES, torch.zeros(1))))
    assert read == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 0), (0, 0), (0, 1), (0, 2)]


def test_frozen_blocks_are_not_run_with_a_store(tmp_path):
    model, calls = layerwise(store=FeatureStore()), Counter()
    model.blocks[0].register_forward_hook(lambda *_: calls.update([model.current_epoch] * model.trainer.training))
    train(model, tmp_path)
    images, size = 1293, 32
    # Two epochs of three steps; once through all images and one batch to compare; again that one batch.
    assert calls == {0: 3, 1: 3, 2: math.ceil(images / size) + 1, 4: 1}


def test_a_store_wants_a_data_module(tmp_path):
    batch = Batch(torch.rand(20, *SHAPE), torch.zeros(20, dtype=torch.long), indices=torch.arange(20))
    options = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    trainer = L.Trainer(max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    with pytest.raises(UsageError, match="give the Trainer a data module"):
        trainer.fit(layerwise(store=FeatureStore()), DataLoader([batch], batch_size=None, collate_fn=lambda one: one))
