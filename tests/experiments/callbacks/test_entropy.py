"""Entropy estimators and the callback that logs entropies of weights, gradients and updates."""

import csv
import math

import lightning.pytorch as L
import pytest
import torch
from helpers import fit, summary
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader

from experiments.callbacks.entropy import Entropy
from experiments.distributed.entropy import h8, shannon
from experiments.measure.silent import silent_trainer
from experiments.studies.weight_entropy import draw, main, read_curves


def generator():
    return torch.Generator().manual_seed(0)


# -- estimators -------------------------------------------------------------------------------------


def test_h8_of_known_distributions():
    assert h8(torch.rand(10**6, generator=generator())) == pytest.approx(8, abs=1e-3)
    assert 6.7 <= h8(torch.randn(4 * 10**5, generator=generator())) <= 6.9
    few = torch.rand(100, 2560, generator=generator())
    assert sum(map(h8, few)) / len(few) == pytest.approx(8 - 255 / (2 * 2560 * math.log(2)), abs=0.01)
    assert h8(torch.full((5, 5), 0.3)) == 0
    assert math.isnan(h8(torch.tensor([0.0, math.nan])))


def test_h8_does_not_depend_on_scale_and_shift_but_falls_when_the_range_outgrows_the_bulk():
    weights = torch.randn(300, 100, generator=generator())
    # Rounding moves a few numbers over a bin's border.
    assert h8(3.7 * weights - 2) == pytest.approx(h8(weights), abs=1e-3)
    assert h8(1e-6 * weights) == pytest.approx(h8(weights), abs=1e-3)
    weights[0] = 50
    assert h8(weights) < 5


def test_shannon_entropy_is_that_of_scipy():
    symbols = torch.randint(-5, 5, (1000,), generator=generator(), dtype=torch.int8)
    counts = symbols.unique(return_counts=True)[1].numpy()
    assert shannon(symbols) == pytest.approx(stats.entropy(counts, base=2))
    assert shannon(torch.zeros(7, dtype=torch.int8)) == 0


# -- callback ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("runs"), "--trainer.callbacks+=experiments.callbacks.Entropy")


def column(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_entropies_are_logged_before_training_and_after_every_epoch(run):
    names = [name.removeprefix("entropy/") for name in summary(run)["metrics"] if name.startswith("entropy/")]
    weights = {name.rpartition("/")[0] for name in names} - {"total"}
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert weights == {name for name, tensor in saved.items() if tensor.dim() > 1}
    for weight in [*weights, "total"]:
        assert len(column(run, f"entropy/{weight}/weight_h8")) == 3
        assert len(column(run, f"entropy/{weight}/update_h8")) == 2
        assert all(0 < h <= 8 for h in column(run, f"entropy/{weight}/gradient_h8"))


def test_logged_metrics_are_those_of_the_saved_weights(run):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    metrics = summary(run)["metrics"]
    weights = {name: tensor for name, tensor in saved.items() if tensor.dim() > 1}
    for name, weight in weights.items():
        assert metrics[f"entropy/{name}/weight_h8"] == pytest.approx(h8(weight), rel=1e-6)
        assert metrics[f"entropy/{name}/weight_rms"] == pytest.approx(float(weight.norm() / weight.numel() ** 0.5))
        kurtosis = stats.kurtosis(weight.flatten().double().numpy(), fisher=False)
        assert metrics[f"entropy/{name}/weight_kurtosis"] == pytest.approx(kurtosis)
    bits = sum(weight.numel() * h8(weight) for weight in weights.values())
    total = metrics["entropy/total/weight_h8"]
    assert total == pytest.approx(bits / sum(weight.numel() for weight in weights.values()))


def test_gradient_entropy_is_that_of_the_last_step():
    class Tiny(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(20, 20)

        def training_step(self, batch, batch_idx):
            return self.map(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self):
            return DataLoader(torch.randn(24, 20, generator=generator()), batch_size=8)

    model, trainer = Tiny(), silent_trainer(accelerator="cpu", max_epochs=1, callbacks=[Entropy()])
    trainer.fit(model)
    logged = trainer.callback_metrics["entropy/map.weight/gradient_h8"]
    assert float(logged) == pytest.approx(h8(model.map.weight.grad), rel=1e-6)


# -- picture ----------------------------------------------------------------------------------------


def test_curves_of_a_run_are_drawn(run, tmp_path):
    curves, metrics = read_curves(run), summary(run)["metrics"]
    assert all(list(curve) == [0, 1, 2] for curve in curves.values())
    assert all(curve[2] == pytest.approx(metrics[f"entropy/{name}/weight_h8"]) for name, curve in curves.items())
    draw([run, run], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_entropies_ends_with_a_sentence(run, finished, tmp_path, capsys):
    for folder, sentence in (
        (finished, "logged no entropy: train it with --trainer.callbacks+=Entropy."),
        (tmp_path, "is no run folder, nor are there runs in it."),
        (tmp_path / "nowhere", "is no run folder, nor are there runs in it."),
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(run), str(folder)])
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"error: {folder} {sentence}\n"


def test_a_picture_of_many_blocks_has_colours_by_depth_and_its_legend_beside_them(tmp_path, monkeypatch):
    folder, blocks = tmp_path / "deep", range(24)
    names = [f"{part}.{k}.conv.weight" for k in blocks for part in ("blocks", "heads")] + ["total"]
    columns = [f"entropy/{name}/{figure}" for name in names for figure in ("weight_h8", "weight_rms")]
    folder.mkdir()
    (folder / "config.yaml").write_text("trainer: {callbacks: {class_path: experiments.callbacks.Entropy}}\n")
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = [["", *(5 if "heads" in column else 1 for column in columns)], ["0", *(2 for _ in columns)]]
        csv.writer(file).writerows([["epoch", *columns], *rows])
    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *to, **how: saved.append(figure) or save(figure, *to, **how))
    main([str(folder), "--output", str(tmp_path / "deep.png")])
    (figure,) = saved
    legend, axes = figure.legends[0], figure.axes[0]
    layers = [f"block {k + 1}, conv" for k in blocks]
    assert [text.get_text() for text in legend.get_texts()] == [*layers, "mean over all weights, heads too"]
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1  # beside the curves, not on them
    colours = {line.get_label(): to_rgb(line.get_color()) for line in axes.lines}
    assert len({colours[layer] for layer in layers}) == len(layers)
    lightness = [sum(colours[layer]) for layer in (layers[0], layers[12], layers[-1])]
    assert lightness == sorted(lightness)
    assert axes.get_ylim()[1] < 5  # where heads begin
