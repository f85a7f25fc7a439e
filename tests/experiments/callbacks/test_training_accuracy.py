"""Accuracy on the training images, un-augmented, after a block's last epoch."""

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers import fit, summary

from datamodules.augment import Augment
from datamodules.digits import Digits
from experiments.callbacks.training_accuracy import TrainingAccuracy, training_accuracy
from experiments.probing.features import evaluating
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.vgg import VGG
from models.plan import Schedule


def test_every_block_has_that_of_its_final_weights(tmp_path):
    one_by_one = (
        "--model=Layerwise",
        "--model.num_blocks=2",
        "--model.epochs_per_block=[2,1]",
        "--trainer.max_epochs=3",
    )
    metrics = summary(fit(tmp_path, "--trainer.callbacks+=TrainingAccuracy", *one_by_one))["metrics"]
    assert 0 <= metrics["train_set/block1/top1"] <= 1
    assert 0.1 < metrics["train_set/block2/top1"] == metrics["train_set/top1"] <= 1


def test_the_models_is_that_of_its_last_block(monkeypatch):
    found, logged = {"block1": 0.25, "block2": 0.5}, {}
    monkeypatch.setattr("experiments.callbacks.training_accuracy.training_accuracy", lambda *_: found)
    monkeypatch.setattr("experiments.callbacks.training_accuracy.log_epoch", lambda _, metrics: logged.update(metrics))
    model = SimpleNamespace(schedule=Schedule(2))
    over = SimpleNamespace(current_epoch=2, max_epochs=3, datamodule=None)
    TrainingAccuracy().on_train_epoch_end(over, model)
    assert logged == {"train_set/block1/top1": 0.25, "train_set/block2/top1": 0.5, "train_set/top1": 0.5}


def test_counts_correct_predictions_and_changes_nothing():
    data = Digits(batch_size=100, augment=Augment(pad=2))
    data.setup("fit")
    torch.manual_seed(0)
    model = DecoupledGreedy(VGG, (1, 8, 8), 10, num_blocks=2)
    model.blocks[0].eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = training_accuracy(model, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (model.blocks[0].training, model.blocks[1].training) == (False, True)
    raw = data.training_images.__getitems__(torch.arange(1293))
    with torch.no_grad(), evaluating(model):
        logits = model.block_logits(data.normalised(raw.images))
    for name, z in logits.items():
        assert found[name].item() == pytest.approx((z.argmax(1) == raw.labels).float().mean().item(), abs=2 / 1293)
