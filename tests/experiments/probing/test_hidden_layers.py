"""The callback that watches hidden layers while they learn."""

import random
from functools import partial

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from helpers import CONFIGS, fit, summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import SGD
from training import assert_equal_weights, train

from datamodules.digits import Digits
from datamodules.views.transforms import SimCLRViews, Views
from experiments.callbacks.hidden_layers import HiddenLayers
from experiments.probing import observe_pictures
from experiments.probing.features import Splits
from experiments.probing.hidden_layers import layer_metrics, layers_of, reader
from experiments.probing.observe_pictures import draw_over_time
from losses.errors import UsageError
from models.methods.blockwise_ssl import BlockwiseSSL
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.layerwise import Layerwise
from models.networks.heads.embeddings import BiasFreeProjector
from models.networks.vgg import VGG
from models.parts.regularization import Regularization

WATCH = "--trainer.callbacks+=experiments.callbacks.HiddenLayers"
DISTURBED = Regularization(input_noise=0.3, overparameterize=2)


def model(method=DecoupledGreedy, **arguments):
    """With all that could be disturbed: BatchNorm, dropout, momentum."""
    L.seed_everything(0)
    network, optimizer = partial(VGG, plan=(8, 8, "M", 16, 16), dropout=0.2), partial(SGD, lr=0.05, momentum=0.9)
    return method(network, (1, 8, 8), 10, num_blocks=2, optimizer=optimizer, **arguments)


class Keeper(L.Callback):
    """Random states and modes at the end of every epoch (the data module seeds torch anew at every step)."""

    def __init__(self):
        self.states = []

    def on_train_epoch_end(self, trainer, pl_module):
        drawn = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
        self.states.append((drawn, [module.training for module in pl_module.modules()]))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"epochs_per_block": 1}, {"method": Layerwise, "epochs_per_block": 1, "regularization": DISTURBED}],
    ids=["together", "one by one", "layer-wise"],
)
def test_training_is_bit_identical_with_and_without_it(arguments, tmp_path):
    found = []
    for callbacks in ([], [HiddenLayers(images=200)]):
        keeper = Keeper()
        trainer = train(model(**arguments), tmp_path, callbacks=[*callbacks, keeper])
        found.append((keeper.states, trainer.model))
    (states, alone), (watched_states, watched) = found
    assert states == watched_states
    assert_equal_weights(alone, watched)


def test_the_metrics_are_those_of_unaugmented_images(tmp_path):
    watched = model()
    logged = train(watched, tmp_path, callbacks=[HiddenLayers(images=10_000, every="block")]).callback_metrics
    compute, splits = reader(layers_of(watched.eval(), "block")), Splits.of(Digits())
    read = [splits.read([split], watched.device, compute) for split in (splits.train, splits.val)]
    for layer, metrics in layer_metrics(*read, "val").items():
        for metric, value in metrics.items():
            assert logged[f"observe/{layer}/{metric}"].item() == pytest.approx(value, rel=1e-4, abs=1e-6)
    assert 0 <= logged["observe/block1/confident_train"] <= 1


def test_it_watches_a_run_and_its_continuation_from_the_command_line(tmp_path, monkeypatch):
    shown, draw_map = [], observe_pictures._draw_map
    monkeypatch.setattr(observe_pictures, "_draw_map", lambda *seen: shown.append(seen[2:]) or draw_map(*seen))
    fit(tmp_path, WATCH, "--trainer.max_epochs=1")
    folder = fit(tmp_path, WATCH, "--trainer.callbacks.every_n_epochs=2", "--trainer.max_epochs=5", "--ckpt_path=last")
    assert [epochs for _, epochs in shown] == [[1]] * 5 + [[1, 2, 4]] * 5
    for rows, epochs in shown:
        assert all(len(values) == len(epochs) for values in rows.values())
    assert list(shown[5][0]) == ["block1/conv1", "block2/conv2", "block3/conv3", "block4/conv4"]
    assert list(shown[-1][0]) == ["block1", "block2", "block3", "block4"]
    assert (folder / "observations_over_time.png").stat().st_size > 10_000
    page = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert page.Images("observe/over_time")
    assert len(page.Scalars("observe/block2/conv2/fuzziness_val")) == 3
    assert "observe/block4/conv4/rank_val" in summary(folder)["metrics"]


def test_without_labels_there_is_no_redundancy(tmp_path):
    """The images are not views, either."""
    watched = model(BlockwiseSSL, expand_dim=16, projector=partial(BiasFreeProjector, widths=(16, 16)))
    data = Digits(batch_size=32, views=Views(SimCLRViews))
    metrics = train(watched, tmp_path, data, [HiddenLayers(images=50)]).callback_metrics
    assert "observe/block2/conv4/ncm_val" in metrics
    assert not any("confident" in name for name in metrics)


def test_heads_that_training_drops_are_judged_while_they_are_there(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(observe_pictures, "_draw_map", lambda ax, panel, rows, epochs: shown.append(rows))
    small = ("--model.network.plan=[8,16]", "--model.epochs_per_block=1", "--trainer.limit_train_batches=4")
    fit(tmp_path, WATCH, *small, config=CONFIGS / "layerwise" / "digits.yaml")
    assert np.array_equal(np.isfinite([*shown[-1].values()]), np.eye(2, dtype=bool))


def test_a_method_without_units_is_refused():
    with pytest.raises(UsageError, match="LightningModule has none: leave it out"):
        HiddenLayers().on_fit_start(None, L.LightningModule())


def test_nothing_is_drawn_of_a_run_that_was_not_watched(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,val/top1\n0,3,0.5\n")
    assert draw_over_time(tmp_path, ["block1"]) is None
    assert not (tmp_path / "observations_over_time.png").exists()
