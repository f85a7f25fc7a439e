"""Entropy estimators and the callback that logs entropies of weights, gradients and updates."""

import csv
import math

import pytest
import torch
from helpers import fit, summary
from lightning.pytorch.demos.boring_classes import BoringModel
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy import stats

from experiments.callbacks.entropy import Entropy
from experiments.distributed.entropy import h8, shannon
from experiments.measure.silent import silent_trainer
from experiments.studies.weight_entropy import main, read_curves


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


def test_entropies_are_logged_before_training_and_after_every_epoch_at_last_of_the_saved_weights(run):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    weights, metrics = {name: w for name, w in saved.items() if w.dim() > 1}, summary(run)["metrics"]
    logged = {name.split("/")[1] for name in metrics if name.startswith("entropy/")}
    assert logged == weights.keys() | {"total"}
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in logged:
        counts = {key: sum(bool(row[f"entropy/{name}/{key}"]) for row in rows) for key in ("weight_h8", "update_h8")}
        assert counts == {"weight_h8": 3, "update_h8": 2}
        assert 0 < metrics[f"entropy/{name}/gradient_h8"] <= 8
    for name, weight in weights.items():
        assert metrics[f"entropy/{name}/weight_h8"] == pytest.approx(h8(weight), rel=1e-6)
        assert metrics[f"entropy/{name}/weight_rms"] == pytest.approx(float(weight.norm() / weight.numel() ** 0.5))
        kurtosis = stats.kurtosis(weight.flatten().double().numpy(), fisher=False)
        assert metrics[f"entropy/{name}/weight_kurtosis"] == pytest.approx(kurtosis)
    bits, count = sum(w.numel() * h8(w) for w in weights.values()), sum(w.numel() for w in weights.values())
    assert metrics["entropy/total/weight_h8"] == pytest.approx(bits / count)


def test_entropies_of_gradient_and_update_are_those_of_the_last_step_and_of_the_epoch():
    model = BoringModel()
    before = model.layer.weight.detach().clone()
    trainer = silent_trainer(accelerator="cpu", max_epochs=1, limit_train_batches=3, callbacks=[Entropy()])
    trainer.fit(model)
    gradient, update = (trainer.callback_metrics[f"entropy/layer.weight/{key}_h8"] for key in ("gradient", "update"))
    assert float(gradient) == pytest.approx(h8(model.layer.weight.grad), rel=1e-6)
    assert float(update) == pytest.approx(h8(model.layer.weight - before), rel=1e-6)


# -- picture ----------------------------------------------------------------------------------------


def test_curves_of_a_run_are_drawn_coloured_by_depth_and_the_legend_beside_them(run, tmp_path, monkeypatch):
    curves, metrics = read_curves(run), summary(run)["metrics"]
    assert all(list(curve.index) == [0, 1, 2] for curve in curves.values())
    assert all(curve[2] == pytest.approx(metrics[f"entropy/{name}/weight_h8"]) for name, curve in curves.items())
    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *to, **how: saved.append(figure) or save(figure, *to, **how))
    main([str(run), str(run), "--output", str(tmp_path / "picture.png")])
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    [figure] = saved
    [legend], axes = figure.legends, figure.axes[1]
    layers = [f"block {k}, conv{k}" for k in range(1, 5)]
    assert [text.get_text() for text in legend.get_texts()] == [*layers, "mean over all weights, heads too"]
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1  # beside the curves, not on them
    colours = {line.get_label(): line.get_color() for line in axes.lines}
    assert set(colours) == {*layers, "mean over all weights, heads too"}  # no heads
    lightness = [sum(to_rgb(colours[layer])) for layer in layers]
    assert lightness == sorted(set(lightness))


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
