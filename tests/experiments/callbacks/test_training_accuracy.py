"""Accuracy on the training images, un-augmented, after a block's last epoch."""

import copy

import pytest
import torch
from helpers import fit, summary

from experiments.callbacks.training_accuracy import training_accuracy
from experiments.probing.features import evaluating
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.vgg import VGG


@pytest.mark.parametrize("options", [(), ("--model=Layerwise", "--model.num_blocks=2", "--model.epochs_per_block=1")])
def test_is_that_of_the_final_weights(options, tmp_path):
    names = ("block1", "block2", "block3", "block4") if not options else ("block1", "block2")
    metrics = summary(fit(tmp_path, "--trainer.callbacks+=TrainingAccuracy", *options))["metrics"]
    assert [f"train_set/{name}/top1" in metrics for name in names] == [True] * len(names)
    assert 0.1 < metrics[f"train_set/{names[-1]}/top1"] <= 1


def test_counts_correct_predictions_and_changes_nothing(monkeypatch):
    from datamodules.augment import Augment
    from datamodules.digits import Digits

    data = Digits(batch_size=100, augment=Augment(pad=2))
    data.setup("fit")
    torch.manual_seed(0)
    model = DecoupledGreedy(VGG, (1, 8, 8), 10, num_blocks=2)
    model.blocks[0].eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = training_accuracy(model, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.blocks[0].training
    assert model.blocks[1].training
    raw = data.training_images.__getitems__(torch.arange(1293))
    images = ((raw.images.float() / 255 - data.mean[0]) / data.std[0]).permute(0, 3, 1, 2)
    with torch.no_grad(), evaluating(model):
        right = [(z.argmax(1) == raw.labels).float().mean() for z in model.block_logits(images).values()]
    assert [found["block1"].item(), found["block2"].item()] == pytest.approx([r.item() for r in right], abs=2 / 1293)
