"""Output losses from the command line; what OutputSignal logs; the comparison's table and picture."""

import csv
import json
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
import yaml
from helpers import CONFIGS, SMALL, fit, summary
from training import Recorder, train

from datamodules.batch import Batch
from datamodules.digits import Digits
from experiments.callbacks.output_signal import OutputSignal
from experiments.studies import output_signal, outputs
from experiments.suite import read_suite
from losses import ExpGB
from losses.errors import UsageError
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.heads.classifiers import AuxHead
from models.networks.vgg import VGG

GROUPS = CONFIGS / "neuron_groups" / "digits.yaml"
FIGURES = ("delta", "confident_wrong", "largest_logit", "first_weight_gradient")


def test_blocks_learn_by_any_output_loss_and_its_signal_is_logged(tmp_path):
    output = ("--model.output_loss=ExpGB", "--model.output_loss.alpha=0.2", "--trainer.callbacks+=OutputSignal")
    folder = fit(tmp_path, *output, *SMALL, config=GROUPS)
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    logged = [row for row in rows if row["train/block1/loss"]]
    assert len(logged) == 4
    names = [f"train/{block}/output_signal/{figure}" for block in ("block1", "block2", "final") for figure in FIGURES]
    assert all(float(row[name]) >= 0 for row in logged for name in names)
    output = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["output_loss"]
    assert output == {"class_path": "losses.ExpGB", "init_args": {"alpha": 0.2, "beta": 0.0}}
    assert 0 <= summary(folder)["metrics"]["test/top1"] <= 1


# -- OutputSignal --------------------------------------------------------------------------------------


def model():
    torch.manual_seed(0)
    network = partial(VGG, plan=(8, 8, "M", 16, 16))
    return DecoupledGreedy(network, (1, 8, 8), 10, 2, head=partial(AuxHead, hidden=8), output_loss=ExpGB)


def test_signal_is_that_of_the_step(tmp_path):
    watched, twin, recorder = model(), model(), Recorder()
    train(watched, tmp_path, Digits(batch_size=64), [recorder, OutputSignal()], max_steps=1, log_every_n_steps=1)
    (batch,) = recorder.batches
    x = batch.images
    for k, block in enumerate(twin.blocks):
        features = block(x)
        logits = twin.heads[k](features).detach().requires_grad_()
        twin.local_loss(k, features, batch).backward()
        (ExpGB()(logits, batch.labels)).sum().backward()
        figures = {name: watched.latest[f"train/block{k + 1}/output_signal/{name}"] for name in FIGURES}
        assert figures["delta"] == pytest.approx(logits.grad.norm(dim=1).mean().item(), rel=1e-5)
        assert figures["largest_logit"] == pytest.approx(logits.abs().max().item(), rel=1e-5)
        first = next(block.parameters())
        assert figures["first_weight_gradient"] == pytest.approx(first.grad.norm().item(), rel=1e-5)
        x = features.detach()


def test_figures_of_known_logits():
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0], [1.0, 0.0]])  # sure and right, sure and wrong, unsure and wrong
    delta = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 8.0]])
    figures = OutputSignal().metrics(logits, torch.tensor([0, 0, 1]), delta)
    expected = {"delta": 5, "largest_logit": 5, "confident_wrong": 1 / 3, "delta_confident_wrong": 2}
    assert {name: value.item() for name, value in figures.items()} == pytest.approx(expected)
    right = OutputSignal().metrics(logits, torch.tensor([0, 1, 0]), delta)
    assert "delta_confident_wrong" not in right


def test_predictions_of_groups_are_judged_by_their_images_labels():
    labels, noted = torch.tensor([0, 1]), {}
    logits = 9 * torch.eye(2)[:, None].expand(2, 3, 2)  # three groups, all sure and right
    blocks = SimpleNamespace(logs_this_step=True, logits_of={0: logits}, output_loss=ExpGB())
    blocks.record = lambda k, name, value: noted.update({name: value.item()})
    OutputSignal().on_train_batch_end(None, blocks, None, Batch(logits, labels), 0)
    assert noted["output_signal/confident_wrong"] == 0


def test_training_without_labels_and_impossible_confidence_are_refused():
    with pytest.raises(UsageError, match="without labels"):
        OutputSignal().setup(None, L.LightningModule(), "fit")
    with pytest.raises(UsageError, match=r"not 1\.5"):
        OutputSignal(confidence=1.5).setup(None, model(), "fit")


# -- the comparison ------------------------------------------------------------------------------------


def write_run(runs, output, rate, seed, curve, test=None):
    folder = runs / f"{output['class_path']}-lr{rate}-seed_everything{seed}"
    folder.mkdir(parents=True)
    model = {"output_loss": output, "optimizer": {"init_args": {"lr": rate}}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"init_args": model}, "seed_everything": seed}))
    rows = ["step,train/loss,val/top1", *(f"{10 * k},1,\n{10 * k},,{top1}" for k, top1 in enumerate(curve))]
    (folder / "metrics.csv").write_text("\n".join(rows))
    if test is not None:
        (folder / "summary.json").write_text(json.dumps({"metrics": {"test/top1": test}}))


@pytest.fixture
def runs(tmp_path):
    entropy = {"class_path": "losses.CrossEntropy"}
    boosted = {"class_path": "losses.ExpGB", "init_args": {"alpha": 0.5}}
    write_run(tmp_path, entropy, 0.1, 0, [0.5, 0.8, 0.7], 0.6)
    write_run(tmp_path, entropy, 0.1, 1, [0.5, 0.7, 0.9], 0.8)
    write_run(tmp_path, entropy, 0.3, 0, [0.9, 0.9, 0.6], 0.9)
    write_run(tmp_path, entropy, 0.3, 1, [0.9, 0.9, 0.99], 0.9)
    write_run(tmp_path, boosted, 0.1, 0, [0.8, 0.9, 0.95], 0.9)
    write_run(tmp_path, boosted, 0.3, 0, [0.99])  # stopped
    write_run(tmp_path, {"class_path": "losses.Pow3GB", "init_args": {"alpha": 0.001}}, 0.1, 0, [])
    return tmp_path


def test_table_takes_the_best_rate_and_counts_epochs_to_cross_entropys_final_figure(runs):
    found = [outputs.Run.read(folder) for folder in sorted(runs.iterdir())]
    headings, (entropy, boosted, failed) = outputs.table(found)
    assert headings[1:3] == ["val % at 0.1", "val % at 0.3"]
    assert headings[-1] == "epochs to 80.00 % val"
    assert entropy == ["CrossEntropy", "70.00", "60.00", "0.1", "80.00 ± 14.14", "70.00 ± 14.14", "2, 3"]
    assert boosted == ["ExpGB(alpha=0.5)", "95.00", "unfinished", "0.1", "95.00", "90.00", "1"]
    assert failed == ["Pow3GB", "unfinished", "–", "–", "–", "–", "–"]


def test_further_seeds_are_a_suite(runs, tmp_path, capsys):
    outputs.main([str(runs), "--seeds", "4", "5", "--suite", str(tmp_path / "more.yaml")])
    assert "CrossEntropy" in capsys.readouterr().out
    planned = read_suite(tmp_path / "more.yaml")
    assert [run.options for run in planned] == [(f"--seed_everything={seed}",) for seed in (4, 5, 4, 5)]
    assert planned[0].config == runs / "losses.CrossEntropy-lr0.1-seed_everything0" / "config.yaml"
    assert planned[0].name == "losses.CrossEntropy-lr0.1-seed_everything4"


def test_a_comparison_without_cross_entropy_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit):
        outputs.main([str(tmp_path)])
    assert "no finished run with CrossEntropy" in capsys.readouterr().err


def test_signals_are_drawn_and_printed(tmp_path, capsys):
    output_signal.main(["--output", str(tmp_path / "signal.png")])
    assert (tmp_path / "signal.png").stat().st_size > 10_000
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["SoftmaxMSE", "0.35", "0.26", "0.019", "0.00013", "5.8e-09"] in printed
    assert ["ErrExp", "1.7", "6.6", "34", "4.3e+02", "4.2e+03"] in printed
