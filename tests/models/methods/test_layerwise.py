"""Blocks that learn one after the other: schedule, heads, regularization, feature store."""

import errno
import os
import random
from functools import partial

import lightning.pytorch as L
import pytest
import torch
import training
from torch.optim import SGD
from torch.utils.data import DataLoader
from training import assert_equal_weights

from datamodules.augment import Augment
from datamodules.digits import Digits
from experiments.callbacks.meter import Meter
from experiments.measure.cost import network_cost
from losses.errors import NetworkError, UsageError
from models.methods.backprop import Backprop
from models.methods.layerwise import Layerwise
from models.networks.heads.classifiers import AuxHead
from models.networks.mlp import MLP
from models.networks.vgg import VGG
from models.parts.feature_store import FeatureStore
from models.parts.regularization import Regularization

SHAPE, CLASSES = (1, 8, 8), 10
network = partial(VGG, plan=(4, "M", 8, 8))
OPTIONS = {
    "network": network,
    "image_shape": SHAPE,
    "num_classes": CLASSES,
    "optimizer": partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
}


def layerwise(seed=0, **options):
    torch.manual_seed(seed)
    return Layerwise(
        **(OPTIONS | {"head": partial(AuxHead, convs=1, fcs=1, hidden=8), "epochs_per_block": 2} | options)
    )


def train(model, tmp_path, callbacks=(), resume=None, augment=None, data=None, **arguments):
    data = data or Digits(batch_size=32, augment=augment or Augment())
    arguments = {"max_epochs": 6, "limit_train_batches": 3} | arguments
    return training.train(model, tmp_path, data, callbacks, resume, **arguments)


class AtEpochs(L.Callback):
    """Calls a function after every epoch with what Lightning's hooks get."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(self.look(trainer, pl_module))


class SaveAfter(L.Callback):
    def __init__(self, epochs, path):
        self.epochs, self.path = epochs, path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch + 1 == self.epochs:
            trainer.save_checkpoint(self.path)


# -- the schedule --------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [3, 2, 1])
def test_blocks_have_as_many_units_as_asked(units):
    model = layerwise(units_per_block=units)
    assert [len(block) for block in model.blocks] == {3: [3], 2: [2, 1], 1: [1, 1, 1]}[units]


def test_one_block_of_all_units_is_backpropagation_bit_for_bit(tmp_path):
    whole = layerwise(units_per_block=3, epochs_per_block=2)
    torch.manual_seed(0)
    backprop = Backprop(**OPTIONS)
    for model in (whole, backprop):
        train(model, tmp_path, max_epochs=2, augment=Augment(pad=1))
    assert_equal_weights(whole, backprop)


def test_finished_heads_and_their_optimizers_state_are_dropped(tmp_path):
    look = AtEpochs(lambda trainer, model: [len(o.state) for o in trainer.optimizers])
    model = layerwise()
    train(model, tmp_path, [look])
    assert [[held > 0 for held in epoch] for epoch in look.seen] == [
        [k == epoch // 2 for k in range(3)] for epoch in range(6)
    ]
    assert [len(list(head.parameters())) > 0 for head in model.heads] == [False, False, True]


def test_accuracy_is_that_of_the_block_that_learns(tmp_path):
    look = AtEpochs(
        lambda trainer, model: (
            list(model.block_logits(torch.zeros(1, *SHAPE))),
            float(trainer.callback_metrics["val/top1"] - trainer.callback_metrics[f"val/block{model._reached}/top1"]),
        )
    )
    trainer = train(layerwise(), tmp_path, [look, meter := Meter()])
    assert look.seen == [([f"block{1 + epoch // 2}"], 0.0) for epoch in range(6)]
    seconds = [float(trainer.callback_metrics[f"train/block{k}/seconds"]) for k in (1, 2, 3)]
    assert min(seconds) > 0
    assert sum(seconds) == pytest.approx(meter.seconds)


def test_kept_heads_predict_alone_and_together(tmp_path):
    model = layerwise(keep_heads=True)
    trainer = train(model, tmp_path, limit_test_batches=2)
    assert list(model.block_logits(torch.zeros(2, *SHAPE))) == ["block1", "block2", "block3"]
    figures = trainer.test(model, datamodule=trainer.datamodule, verbose=False)[0]
    assert {"test/block1/top1", "test/block2/top1", "test/block3/top1", "test/ensemble/top1"} < set(figures)


@pytest.mark.parametrize("store", [None, FeatureStore(passes=2)], ids=["computed", "stored"])
@pytest.mark.parametrize("epochs", range(1, 6))
def test_resumes_exactly_inside_every_block(epochs, store, tmp_path):
    def make(seed):
        regularization = Regularization(weight_decay=2, input_dropout=0.1, input_noise=0.1, overparameterize=2)
        return layerwise(seed, store=store, regularization=regularization)

    whole, half, resumed = make(0), make(0), make(7)
    train(whole, tmp_path, [SaveAfter(epochs, tmp_path / "half.ckpt")], augment=Augment(pad=1))
    train(half, tmp_path, augment=Augment(pad=1))
    train(resumed, tmp_path, resume=tmp_path / "half.ckpt", augment=Augment(pad=1))
    assert_equal_weights(whole, half)
    assert_equal_weights(whole, resumed)


@pytest.mark.parametrize("units", [1, 2, 4, 8])
def test_a_block_of_p_linear_layers_saves_p_and_one_activations(units):
    d, size = 64, 16  # 8×8 pixels, layers as wide
    net = partial(MLP, hidden=[d] * 8, batch_norm=False)
    model = layerwise(network=net, units_per_block=units, head=partial(AuxHead, convs=0, fcs=1))
    saved = [node.activation_bytes for node in network_cost(model, size).nodes]
    # Every layer's input and the last one's output, which the linear head reads: nothing else is kept.
    assert saved == [(units + 1) * size * d * 4] * (8 // units)


@pytest.mark.parametrize("units", [0, 4])
def test_refuses_blocks_that_the_network_cannot_give(units):
    with pytest.raises(NetworkError, match=f"block of {units} units .* network of 3 "):
        layerwise(units_per_block=units)


def test_one_unit_makes_a_block_unless_units_or_blocks_are_given_but_not_both():
    assert len(layerwise().blocks) == 3
    assert len(layerwise(num_blocks=2).blocks) == 2
    with pytest.raises(NetworkError, match="units_per_block, here 1, or by num_blocks, here 2, not by both"):
        layerwise(units_per_block=1, num_blocks=2)


def test_every_block_may_have_batches_of_another_size(tmp_path):
    look = AtEpochs(lambda trainer, model: trainer.global_step)
    data = Digits(batch_size=400, batch_sizes={2: 600, 4: 1200})
    train(layerwise(), tmp_path, [look], data=data, limit_train_batches=1.0)
    assert look.seen == [4, 8, 11, 14, 16, 18]


def test_a_run_with_batches_of_several_sizes_resumes_exactly(tmp_path):
    sizes = {"batch_size": 400, "batch_sizes": {2: 600, 3: 1200}}
    whole, resumed = layerwise(), layerwise(7)
    train(whole, tmp_path, [SaveAfter(3, tmp_path / "half.ckpt")], data=Digits(**sizes), limit_train_batches=1.0)
    train(resumed, tmp_path, resume=tmp_path / "half.ckpt", data=Digits(**sizes), limit_train_batches=1.0)
    assert_equal_weights(whole, resumed)


# -- regularization ------------------------------------------------------------------------------------


def test_weight_decay_is_raised_for_every_block(tmp_path):
    look = AtEpochs(lambda trainer, model: [o.param_groups[0]["weight_decay"] for o in trainer.optimizers])
    train(layerwise(regularization=Regularization(weight_decay=4)), tmp_path, [look], max_epochs=6)
    assert look.seen[0] == pytest.approx([4e-3] * 3)
    assert [rates[epoch // 2] for epoch, rates in enumerate(look.seen)] == pytest.approx([4e-3] * 6)


def test_a_factor_on_no_weight_decay_is_refused(tmp_path):
    plain, raised = partial(SGD, lr=0.05), Regularization(weight_decay=3)
    with pytest.raises(UsageError, match=r"weight_decay 3 is a factor .* --model.optimizer.weight_decay"):
        train(layerwise(optimizer=plain, regularization=raised), tmp_path)
    train(layerwise(optimizer=plain), tmp_path)  # without a factor it may be 0


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


def test_blocks_are_overparameterized_until_they_have_learned(tmp_path):
    plain = layerwise().state_dict()
    model = layerwise(regularization=Regularization(overparameterize=3))
    look = AtEpochs(
        lambda trainer, model: [any("parametrizations" in n for n, _ in b.named_parameters()) for b in model.blocks]
    )
    x = torch.rand(5, *SHAPE)
    outputs = []

    class Before(L.Callback):
        def on_fit_end(self, trainer, pl_module):
            outputs.append(pl_module.eval()(x))

    train(model, tmp_path, [look, Before()])
    assert look.seen == [[k >= epoch // 2 for k in range(3)] for epoch in range(6)]
    assert {name for name in model.state_dict() if name.startswith("blocks.")} == {
        name for name in plain if name.startswith("blocks.")
    }
    assert torch.equal(model.eval()(x), outputs[0])


# -- the feature store ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "convs"), [(network, 1), (partial(MLP, hidden=(12, 12, 12)), 0)], ids=["maps", "vectors"]
)
def test_a_store_changes_nothing_but_the_time_without_augmentation(net, convs, tmp_path):
    head = partial(AuxHead, convs=convs, fcs=1)
    computed, stored = (layerwise(network=net, head=head, store=store) for store in (None, FeatureStore()))
    for model in (computed, stored):
        train(model, tmp_path)
    for name, tensor in computed.state_dict().items():
        torch.testing.assert_close(stored.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_store_in_a_file_is_one_in_memory(tmp_path):
    memory, disk = (layerwise(store=FeatureStore(2, folder)) for folder in (None, str(tmp_path / "store")))
    files = AtEpochs(lambda trainer, model: sorted(os.listdir(tmp_path / "store")) if model._reached > 1 else [])
    train(memory, tmp_path, augment=Augment(pad=1))
    train(disk, tmp_path, [files], augment=Augment(pad=1))
    assert_equal_weights(memory, disk)
    assert [len(names) for names in files.seen] == [0, 0, 1, 1, 1, 1]
    assert not os.listdir(tmp_path / "store")


class Inputs(L.Callback):
    """What block 2 reads, step by step."""

    def __init__(self):
        self.read = []

    def setup(self, trainer, pl_module, stage):
        def keep(block, inputs):
            if pl_module.training:
                self.read.append((pl_module.current_epoch, inputs[0].detach().clone()))

        pl_module.blocks[1].register_forward_pre_hook(keep)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.indices = batch.indices


def test_stored_features_are_those_of_the_augmented_images_of_their_pass(tmp_path):
    seen = {}

    def look(trainer, model):
        if model._inputs.blocks == 1 and not seen:
            for number in range(2):
                for batch in trainer.datamodule.training_pass(number, model.device):
                    with torch.no_grad():
                        right = model.blocks[0](batch.images)
                    torch.testing.assert_close(model._inputs._features.read(number, batch.indices), right)
            rows = torch.arange(20)
            seen["versions differ"] = not torch.equal(
                model._inputs._features.read(0, rows), model._inputs._features.read(1, rows)
            )

    train(layerwise(store=FeatureStore(2)), tmp_path, [AtEpochs(look)], augment=Augment(pad=2))
    assert seen["versions differ"]


def test_epochs_read_one_pass_after_the_other(tmp_path, monkeypatch):
    numbers = []
    read = Layerwise.step_input

    def note(self, batch):
        if self._inputs.blocks:
            numbers.append((self.current_epoch, self.current_epoch % 3 % 2))
            expected = self._inputs._features.read(numbers[-1][1], batch.indices)
            assert torch.equal(read(self, batch)[1], expected)
        return read(self, batch)

    monkeypatch.setattr(Layerwise, "step_input", note)
    train(layerwise(store=FeatureStore(2), epochs_per_block=3), tmp_path, max_epochs=9, augment=Augment(pad=2))
    assert sorted(set(numbers)) == [(3, 0), (4, 1), (5, 0), (6, 0), (7, 1), (8, 0)]


def test_stored_features_are_rounded_as_asked():
    store = FeatureStore(dtype="bfloat16").new(4, (3, 2, 2))
    features = torch.rand(4, 3, 2, 2)
    store.write(0, torch.arange(4), features)
    assert torch.equal(store.read(0, torch.arange(4)), features.bfloat16().float())


def test_frozen_blocks_are_not_run_with_a_store(tmp_path):
    calls = []

    class Count(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            calls.append(0)

    model = layerwise(store=FeatureStore())

    def count(block, inputs, output):
        if model.trainer.training:
            calls[-1] += 1

    model.blocks[0].register_forward_hook(count)
    train(model, tmp_path, [Count()])
    images, size = 1293, 32
    batches = -(-images // size)
    # Two epochs of three steps; once through all images and one batch to compare; again that one batch.
    assert calls == [3, 3, batches + 1, 0, 1, 0]


def test_an_altered_file_is_noticed(tmp_path):
    def spoil(trainer, model):
        if model._inputs.blocks == 1:
            with open(model._inputs._features._path, "r+b") as file:
                file.write(b"\x01" * 100_000)

    with pytest.raises(UsageError, match=r"store/block-.* was altered on the disk"):
        train(layerwise(store=FeatureStore(1, str(tmp_path / "store"))), tmp_path, [AtEpochs(spoil)])


def test_a_file_is_removed_when_training_breaks_off(tmp_path):
    def stop(trainer, model):
        if model._inputs.blocks == 1:
            assert os.listdir(tmp_path / "store")
            raise KeyError("some fault")

    model = layerwise(store=FeatureStore(1, str(tmp_path / "store")))
    with pytest.raises(KeyError):
        train(model, tmp_path, [AtEpochs(stop)])
    model._inputs._features = None  # as at the end of the process
    assert not os.listdir(tmp_path / "store")


@pytest.mark.parametrize("how", ["free", "allocated"])
def test_a_full_disk_is_refused_before_anything_is_written(how, tmp_path, monkeypatch):
    if how == "free":
        monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    else:

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", full)
    model = layerwise(store=FeatureStore(1, str(tmp_path / "store")))
    message = (
        r"needs 0\.\d\d MiB, but only 0\.00 MiB is free"
        if how == "free"
        else r"cannot be written to .* \(No space left on device\)"
    )
    with pytest.raises(UsageError, match=message):
        train(model, tmp_path)
    assert not os.listdir(tmp_path / "store")


def test_a_store_larger_than_memory_is_refused():
    with pytest.raises(UsageError, match=r"GiB memory is there.*fewer passes.*folder on a disk"):
        FeatureStore().new(10**9, (1000, 10, 10))


def test_features_that_cannot_be_recomputed_are_noticed(tmp_path, monkeypatch):
    original = Digits.training_pass

    def fickle(self, number, device):
        for batch in original(self, number, device):
            yield batch._replace(images=batch.images + random.random())

    monkeypatch.setattr(Digits, "training_pass", fickle)
    with pytest.raises(UsageError, match="differ from recomputed ones"):
        train(layerwise(store=FeatureStore()), tmp_path)


def test_no_more_passes_are_stored_than_a_block_has_epochs():
    given = FeatureStore(passes=3)
    model = layerwise(store=given, epochs_per_block=2)
    assert (model._store.passes, given.passes) == (2, 3)


def test_a_store_wants_a_pass_and_a_data_module(tmp_path):
    with pytest.raises(UsageError, match="at least 1 pass"):
        FeatureStore(0)
    batch = Digits().load(train=True).__getitems__(torch.arange(20))
    batch = batch._replace(images=torch.rand(20, *SHAPE), indices=torch.arange(20))
    options = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    trainer = L.Trainer(max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    with pytest.raises(UsageError, match="give the Trainer a data module"):
        trainer.fit(layerwise(store=FeatureStore()), DataLoader([batch], batch_size=None, collate_fn=lambda one: one))
