"""The classifiers that learn beside a run."""

import csv
from functools import partial

import lightning.pytorch as L
import pytest
import torch
from helpers import fit, summary
from torch.nn import functional as F
from torch.optim import SGD
from training import assert_equal_weights, train

from datamodules.batch import Batch
from experiments.callbacks.epoch_lines import EpochLines
from experiments.callbacks.online_probe import OnlineProbe
from experiments.callbacks.progress_bar import accuracies
from losses.winners import WinnerTakeAll
from models.features import pooled
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.equilibrium_propagation import EquilibriumPropagation
from models.methods.self_defined_target import SelfDefinedTarget
from models.networks.heads.classifiers import AuxHead
from models.networks.mlp import MLP
from models.networks.vgg import VGG


def network(**arguments):
    torch.manual_seed(0)
    vgg, head = partial(VGG, plan=(8, 8, "M", 16, 16)), partial(AuxHead, hidden=16)
    return DecoupledGreedy(vgg, (1, 8, 8), 10, 2, head=head, optimizer=partial(SGD, lr=0.05), **arguments)


def test_the_network_learns_as_if_there_were_no_probe(tmp_path):
    alone, watched, probe = network(), network(), OnlineProbe()
    train(alone, tmp_path)
    trainer = train(watched, tmp_path, callbacks=[probe])
    assert_equal_weights(alone, watched)
    assert set(probe.heads) == {"block1", "block2"}
    assert not any(block._forward_hooks for block in watched.blocks)
    for k in (1, 2):
        assert 0 <= trainer.callback_metrics[f"probe_online/block{k}/gap/top1"] <= 1


class Keeper(L.Callback):
    """Block 1's first features of every training batch, and the labels."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.eval()  # so that the features can be made again
        with torch.no_grad():
            self.batches.append((pooled(pl_module.blocks[0](batch.images)), batch.labels))


def test_a_classifier_takes_the_steps_of_plain_sgd(tmp_path):
    """Also: what the block computes outside a batch is not learned from."""
    probe, keeper = OnlineProbe(learning_rate=0.3), Keeper()
    train(network(), tmp_path, callbacks=[keeper, probe], max_epochs=1)
    head = torch.nn.Linear(8, 10)
    torch.nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(head.bias)
    sgd = SGD(head.parameters(), lr=0.3, momentum=0.9)
    for features, labels in keeper.batches:
        sgd.zero_grad()
        F.cross_entropy(head(features), labels).backward()
        sgd.step()
    assert torch.allclose(probe.heads["block1"].weight, head.weight, atol=1e-6)


@pytest.mark.parametrize("method", [SelfDefinedTarget, EquilibriumPropagation])
def test_of_self_defined_targets_the_outputs_are_read(method, tmp_path):
    """And not the pixels, which is all that a single layer of outputs reads."""
    probe, layers = OnlineProbe(), partial(MLP, hidden=[], batch_norm=False, clamped=True)
    model = method(layers, (1, 8, 8), 10, outputs=20, target=partial(WinnerTakeAll, winners=2))
    trainer = train(model, tmp_path, callbacks=[probe])
    assert probe.heads["block1"].weight.shape == (10, 20)
    assert 0 <= trainer.callback_metrics["probe_online/block1/outputs/top1"] <= 1
    probe.setup(trainer, model, "fit")
    images = torch.rand(5, 1, 8, 8)
    outputs = model.eval().block_features(images)["block1/outputs"]
    probe._features.clear()
    model.validation_step(Batch(images, torch.zeros(5)), 0)
    assert torch.equal(probe._features["block1"], outputs)


def test_of_several_passes_the_first_rows_of_the_first_are_taken():
    """Of two views one above the other those are the first one's."""
    probe, model, views = OnlineProbe(), network().eval(), torch.randn(12, 1, 8, 8)
    probe.setup(None, model, "fit")
    features = model.blocks[0](views)
    model.blocks[0](views.flip(0))
    taken = probe._taken(Batch(views[:6], torch.zeros(6)))["block1"]
    assert torch.equal(taken, pooled(features)[:6])
    assert not taken.requires_grad


def test_blocks_that_do_not_run_yet_have_no_figure(tmp_path):
    metrics = train(
        network(epochs_per_block=2), tmp_path, callbacks=[OnlineProbe()], max_epochs=4, max_steps=4
    ).callback_metrics
    assert "probe_online/block1/gap/top1" in metrics
    assert "probe_online/block2/gap/top1" not in metrics


def test_any_run_may_have_it(tmp_path):
    folder = fit(tmp_path, '--trainer.callbacks=[{"class_path": "experiments.callbacks.OnlineProbe"}]')
    assert {f"probe_online/block{k}/gap/top1" for k in range(1, 5)} <= set(summary(folder)["metrics"])
    with (folder / "metrics.csv").open() as file:
        logged = list(csv.DictReader(file))
    assert sum(bool(row["train/block3/probe_online/loss"]) for row in logged) == 4


def test_epoch_lines_show_it(tmp_path, capsys):
    train(network(), tmp_path, callbacks=[OnlineProbe(), EpochLines()])
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 2")]
    assert "val top-1 %" in line
    assert "probe top-1 %" in line


def test_accuracies_are_shown_in_order_that_of_a_final_head_by_name():
    model = network(final_head=partial(AuxHead, hidden=16))
    metrics = {"val/block1/top1": 0.5, "val/block2/top1": 0.625, "val/final/top1": 0.75, "train/block1/top1": 1.0}
    assert accuracies(metrics, model, ("val", "probe")) == {"val top-1 %": "50.0 62.5 final 75.0"}
