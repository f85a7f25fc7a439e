"""Data filters: which images an epoch drops, how the others are weighed, what a run saves."""

from functools import partial
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
import training
from helpers import fit, summary
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from datamodules.digits import Digits
from experiments.callbacks.drop_confident import DropConfident
from experiments.callbacks.info_batch import InfoBatch
from losses.errors import UsageError
from models.methods.blockwise_ssl import BlockwiseSSL
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.layerwise import Layerwise
from models.methods.predsim import PredSim
from models.networks.heads.classifiers import AuxHead
from models.networks.heads.embeddings import BiasFreeProjector
from models.networks.mlp import MLP
from models.networks.vgg import VGG


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def infobatch(losses, ratio=0.5, seed=0):
    return InfoBatch(ratio).choose(losses, 1, 8, generator(seed))


def test_a_share_of_the_images_below_the_mean_is_dropped_of_equal_ones_none():
    losses = torch.cat([torch.linspace(0, 1, 60), torch.full((20,), 10.0)])  # mean 2.9: 60 are below
    selection = infobatch(losses)
    assert len(selection.indices) == 50
    assert set(range(60, 80)) <= set(selection.indices.tolist())
    assert (selection.weights[:60] == 2).all()
    assert (selection.weights[60:] == 1).all()
    indices, weights, *_ = infobatch(torch.zeros(50))
    assert (len(indices), weights.unique().tolist()) == (50, [1])


@pytest.mark.parametrize("ratio", [0.5, 0.3])
def test_weighted_gradients_are_in_expectation_those_of_all_images(ratio):
    losses = torch.rand(41, generator=generator(1), dtype=torch.float64)
    gradients = torch.randn(41, 7, generator=generator(2), dtype=torch.float64)
    draws = []
    for seed in range(4000):
        kept, weights, *_ = infobatch(losses, ratio, seed)
        draws.append((weights[kept, None] * gradients[kept]).sum(0))
    draws = torch.stack(draws)
    error = (draws.mean(0) - gradients.sum(0)).abs()
    assert (error < 4 * draws.std(0) / len(draws) ** 0.5 + 1e-12).all()  # four standard errors


@pytest.mark.parametrize(("ratio", "until"), [(1.0, 0.5), (-0.1, 0.5), (0.5, 1.1), (0.5, -1), (0, 0.5), (0.5, 0)])
def test_refuses_shares_that_are_none(ratio, until):
    with pytest.raises(UsageError, match="share below 1 until a share of the epochs"):
        InfoBatch(ratio, until)


@pytest.mark.parametrize(
    ("visits", "least", "kept"),
    [([0, 3, 2, 4, 1, 3], 2, [0, 2, 4]), ([5, 3, 4, 3, 9], 3, [1, 2, 3]), ([5, 3], 3, [0, 1])],
)
def test_images_that_were_sure_often_enough_are_left_out_but_the_least_sure_stay(visits, least, kept):
    selection = DropConfident(patience=3, least=least).choose(torch.tensor(visits), 1, 8, generator())
    assert selection.indices.tolist() == kept
    assert (selection.weights == 1).all()


@pytest.mark.parametrize("wrong", [{"threshold": 1.0}, {"patience": 0}, {"rescore_every": 0}, {"least": 0}])
def test_refuses_a_filter_that_could_drop_nothing_or_all(wrong):
    with pytest.raises(UsageError, match="threshold between 0 and 1"):
        DropConfident(**wrong)


def test_all_blocks_must_be_sure_and_visits_count_in_turn():
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    model = SimpleNamespace(logits_of={0: torch.cat([sure, sure, unsure]), 1: torch.cat([sure, unsure, sure])})
    batch = SimpleNamespace(labels=torch.zeros(3, dtype=torch.int64))
    assert DropConfident().scores(model, batch, torch.tensor([2.0, 2.0, 0.0])).tolist() == [3, 0, 0]
    model.logits_of = {0: torch.stack([sure, unsure], dim=1).expand(3, 2, 2)}  # two groups: their mean, p = 0.75
    assert DropConfident().scores(model, batch, torch.ones(3)).tolist() == [0, 0, 0]
    assert DropConfident(threshold=0.7).scores(model, batch, torch.ones(3)).tolist() == [2, 2, 2]


def network(kind=DecoupledGreedy, seed=0, **options):
    torch.manual_seed(seed)
    vgg, head = partial(VGG, plan=(8, "M", 8)), partial(AuxHead, convs=1, fcs=1)
    return kind(vgg, (1, 8, 8), 10, num_blocks=2, head=head, optimizer=partial(SGD, lr=0.05), **options)


class Counts(L.Callback):
    """Which images every epoch had, and how many validations there were; saves a checkpoint after some epoch."""

    def __init__(self, save_after=None, path=None):
        self.epochs, self.validations, self.save_after, self.path = [], 0, save_after, path

    def on_train_epoch_start(self, *_):
        self.epochs.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.epochs[-1] += batch.indices.tolist()

    def on_validation_epoch_end(self, *_):
        self.validations += 1

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch + 1 == self.save_after:
            trainer.save_checkpoint(self.path)


def train(model, tmp_path, *callbacks, resume=None):
    data = Digits(batch_size=256)
    return training.train(model, tmp_path, data, callbacks, resume, max_epochs=8, limit_train_batches=1.0)


def test_first_and_last_epochs_have_all_images_the_others_fewer_and_validation_follows_each(tmp_path, monkeypatch):
    counts, draws, choose = Counts(), set(), InfoBatch.choose
    monkeypatch.setattr(InfoBatch, "choose", lambda *args: draws.add(args[-1].initial_seed()) or choose(*args))
    trainer = train(network(), tmp_path, InfoBatch(until=0.75), counts)
    sizes = [len(set(epoch)) for epoch in counts.epochs]
    assert [size == 1293 for size in sizes] == [True, *[False] * 5, True, True]
    assert all(len(epoch) == len(set(epoch)) for epoch in counts.epochs)
    saved = 1 - sum(sizes) / (8 * 1293)
    assert trainer.callback_metrics["train/saved"].item() == pytest.approx(saved)
    assert 0.1 < saved < 0.5 * 0.75
    assert counts.validations == 8
    assert len(draws) == 8  # no epoch drops by the chance of another


@pytest.mark.parametrize(("until", "epochs", "least"), [(0.875, 1, 2), (1.0, 1, 2), (0.5, 2, 3), (0.3, 3, 4)], ids=str)
def test_so_few_epochs_that_nothing_can_be_dropped_are_refused(until, epochs, least, tmp_path):
    refused = [InfoBatch(until=until)]
    with pytest.raises(UsageError, match=f"epochs_per_block of at least {least}, not {epochs}: the first epoch sees"):
        training.train(network(Layerwise, epochs_per_block=epochs), tmp_path, None, refused, max_epochs=2 * epochs)
    with pytest.raises(UsageError, match=f"trainer.max_epochs of at least {least}, not {epochs}"):
        training.train(network(), tmp_path, None, refused, max_epochs=epochs)
    chosen = [InfoBatch(0.5, until).choose(torch.arange(9.0), done, least, generator()) for done in range(least)]
    assert any(selection is not None for selection in chosen)  # one more is enough


def test_blocks_that_learn_one_by_one_each_begin_with_all_images(tmp_path):
    counts = Counts()
    train(network(Layerwise, epochs_per_block=[5, 3]), tmp_path, InfoBatch(until=0.75), counts)
    first, second = [True, False, False, False, True], [True, False, False]
    assert [len(epoch) == 1293 for epoch in counts.epochs] == first + second


def test_sure_images_are_left_out_seen_again_in_turn_and_passed_on_to_the_next_block(tmp_path):
    counts = Counts()
    quick = {"threshold": 0.11, "patience": 1, "rescore_every": 3}
    trainer = train(network(Layerwise, epochs_per_block=4), tmp_path, DropConfident(**quick), counts)
    sizes = [len(set(epoch)) for epoch in counts.epochs]
    assert [size == 1293 for size in sizes] == [True, False, False, True, False, False, False, True]
    assert set(counts.epochs[2]) < set(counts.epochs[1])  # what was left out cannot come back in between
    assert trainer.callback_metrics["train/saved"].item() == pytest.approx(1 - sum(sizes) / (8 * 1293))


@pytest.mark.parametrize(
    ("make_filter", "epochs"), [(InfoBatch, 5), (partial(DropConfident, threshold=0.11, patience=1), 2)]
)
def test_resumes_exactly(make_filter, epochs, tmp_path):
    whole, resumed = network(), network(seed=4)
    path = tmp_path / "half.ckpt"
    first, second = Counts(epochs, path), Counts()
    train(whole, tmp_path, make_filter(), first)
    train(resumed, tmp_path, make_filter(), second, resume=path)
    assert second.epochs == first.epochs[epochs:]
    training.assert_equal_weights(resumed, whole)


def test_from_the_command_line(tmp_path, capsys):
    options = ["--trainer.callbacks+=InfoBatch", "--trainer.max_epochs=3", "--trainer.limit_train_batches=1.0"]
    metrics = summary(fit(tmp_path, *options))["metrics"]
    assert 0 < metrics["train/saved"] < 0.5
    share = f"{100 * metrics['train/saved']:.1f} %"
    assert f"Left out:   {share} of the training images' visits\n" in capsys.readouterr().out


def test_is_refused_where_blocks_learn_from_something_else_than_losses_of_predictions(tmp_path):
    small = partial(BlockwiseSSL, projector=partial(BiasFreeProjector, widths=(8, 8, 8)))
    for method, sentence in (
        (small, "DropConfident judges images by what is predicted of them: use a method with labels"),
        (PredSim, "DropConfident leaves out images .* PredSim has a local_loss of its own: leave DropConfident out"),
    ):
        with pytest.raises(UsageError, match=sentence):
            train(method(partial(VGG, plan=(8, "M", 8)), (1, 8, 8), 10, num_blocks=2), tmp_path, DropConfident())


def test_schedules_that_count_steps_are_refused(tmp_path):
    train(network(scheduler_interval="step"), tmp_path, InfoBatch())  # there is none
    model = network(scheduler=partial(CosineAnnealingLR, T_max=48), scheduler_interval="step")
    with pytest.raises(UsageError, match=r"InfoBatch makes epochs shorter: .* Use --model\.scheduler_interval epoch"):
        train(model, tmp_path, InfoBatch())


class Weighed(L.Callback):
    """Holds the batches of a filter's run against what its images' losses say; the weights are never stepped."""

    def __init__(self, chosen):
        self.chosen, self.losses, self.weighed = chosen, torch.zeros(1293), 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        with torch.no_grad():
            logits = [
                head(features)
                for head, features in zip(pl_module.heads, outputs_of(pl_module, batch.images), strict=True)
            ]
        losses = torch.stack([cross_entropy(z, batch.labels, reduction="none") for z in logits]).mean(0)
        if batch.weights is not None:
            below = self.losses < self.losses.mean()  # as they were before this epoch: they do not change
            assert ((batch.weights > 1) == below[batch.indices]).all()
            assert 1.9 < float(batch.weights.max()) < 2.1
            self.weighed += len(batch.weights)
        self.losses[batch.indices] = losses
        torch.testing.assert_close(self.chosen._scores[batch.indices], losses)


def outputs_of(model, images):
    """What every block hands on."""
    for block in model.blocks:
        images = block(images)
        yield images


def test_every_image_keeps_its_own_weight_and_is_scored_without_it(tmp_path):
    torch.manual_seed(0)
    mlp, head = partial(MLP, hidden=(32, 32), batch_norm=False), partial(AuxHead, convs=0, fcs=1)
    model = DecoupledGreedy(mlp, (1, 8, 8), 10, num_blocks=2, head=head, optimizer=partial(SGD, lr=0.0))
    chosen = InfoBatch()
    weighed = Weighed(chosen)
    train(model, tmp_path, chosen, weighed)
    assert weighed.weighed > 1293


def test_few_labels_are_refused_whose_images_a_filter_would_choose_among_all(tmp_path):
    few = Digits(batch_size=32, labels=100)
    with pytest.raises(UsageError, match="DropConfident chooses among all training images"):
        training.train(network(), tmp_path, few, [DropConfident()])
