"""Output losses from the command line; what OutputSignal logs; the comparison's table and picture."""

import csv
import json
from functools import partial

import lightning.pytorch as L
import pytest
import torch
import yaml
from helpers import CONFIGS, DIGITS, fault, fit, summary

from datamodules.batch import Batch
from datamodules.digits import Digits
from experiments.callbacks.output_signal import OutputSignal
from experiments.studies import output_signal, outputs
from experiments.suite import read_suite
from losses import CrossEntropy, ExpGB, SoftmaxMSE
from losses.errors import UsageError
from models.methods.blockwise_ssl import BlockwiseSSL
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.heads.classifiers import AuxHead
from models.networks.vgg import VGG

GROUPS = CONFIGS / "neuron_groups" / "digits.yaml"
FIGURES = ("delta", "confident_wrong", "largest_logit", "first_weight_gradient")


def metrics(folder):
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


@pytest.mark.parametrize(
    ("config", "blocks", "options"),
    [
        (
            DIGITS,
            ["block1", "block2", "block3", "block4"],
            ["--model.output_loss=ExpGB", "--model.output_loss.alpha=0.2"],
        ),
        (GROUPS, ["block1", "block2", "final"], ["--model.output_loss=SoftmaxMSE", "--trainer.limit_train_batches=4"]),
    ],
    ids=["decoupled greedy", "neuron groups"],
)
def test_any_block_learns_by_any_output_loss_and_its_signal_is_logged(config, blocks, options, tmp_path):
    watch = (
        "--trainer.callbacks+=OutputSignal",
        "--trainer.log_every_n_steps=2",
        "--trainer.enable_progress_bar=false",
    )
    folder = fit(tmp_path, *options, *watch, "--trainer.accelerator=cpu", config=config)
    logged = [row for row in metrics(folder) if row["train/block1/loss"]]
    assert len(logged) == 4
    for row in logged:
        assert all(float(row[f"train/{block}/output_signal/{figure}"]) >= 0 for block in blocks for figure in FIGURES)
    output = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["output_loss"]
    assert output["class_path"] == options[0].replace("--model.output_loss=", "losses.")
    assert 0 <= summary(folder)["metrics"]["test/top1"] <= 1


def test_an_impossible_parameter_is_told_in_one_sentence(tmp_path, capsys):
    options = ("--model.output_loss=ExpGB", "--model.output_loss.alpha=0")
    message = fault(capsys, "fit", "--config", str(DIGITS), f"--runs={tmp_path}", *options)
    assert "alpha scales what boosts the gradient: it must be above 0, not 0.0." in message
    assert not list(tmp_path.iterdir())


# -- OutputSignal --------------------------------------------------------------------------------------


class Kept(L.Callback):
    """Keeps the batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = Batch(batch.images.clone(), batch.labels.clone())


def model(output_loss=CrossEntropy, surer=1.0):
    """Two blocks whose logits are made larger by a factor."""
    torch.manual_seed(0)
    network = partial(VGG, plan=(8, 8, "M", 16, 16))
    made = DecoupledGreedy(network, (1, 8, 8), 10, 2, head=partial(AuxHead, hidden=8), output_loss=output_loss)
    for head in made.heads:
        list(head.modules())[-1].weight.data *= surer
    return made


def one_step(watched, tmp_path):
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        log_every_n_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[kept := Kept(), OutputSignal()],
    )
    trainer.fit(watched, datamodule=Digits(batch_size=64))
    return kept.batch


def test_signal_is_that_of_the_step(tmp_path):
    watched, twin = model(ExpGB), model(ExpGB)
    batch = one_step(watched, tmp_path)
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


def test_squashed_signal_vanishes_where_the_network_is_sure_and_wrong(tmp_path):
    """Logits 1,000 times as large: nine of ten predictions are sure and wrong."""
    found = {}
    for output in (CrossEntropy, SoftmaxMSE):
        one_step(watched := model(output, surer=1000), tmp_path)
        found[output] = {name.removeprefix("train/block2/output_signal/"): v for name, v in watched.latest.items()}
        assert found[output]["confident_wrong"] > 0.7
    assert found[CrossEntropy]["delta_confident_wrong"] == pytest.approx(2**0.5, rel=0.02)
    assert found[SoftmaxMSE]["delta_confident_wrong"] < 0.02
    assert found[SoftmaxMSE]["first_weight_gradient"] < 0.05 * found[CrossEntropy]["first_weight_gradient"]


def test_figures_of_known_logits():
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0], [1.0, 0.0]])  # sure and right, sure and wrong, unsure and wrong
    delta = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 8.0]])
    figures = OutputSignal().metrics(logits, torch.tensor([0, 0, 1]), delta)
    expected = {"delta": 5, "largest_logit": 5, "confident_wrong": 1 / 3, "delta_confident_wrong": 2}
    assert {name: value.item() for name, value in figures.items()} == pytest.approx(expected)
    right = OutputSignal().metrics(logits, torch.tensor([0, 1, 0]), delta)
    assert "delta_confident_wrong" not in right


def test_training_without_labels_and_impossible_confidence_are_refused():
    with pytest.raises(UsageError, match="without labels"):
        OutputSignal().setup(None, BlockwiseSSL(partial(VGG, plan=(8, 8)), (1, 8, 8), 10, 2), "fit")
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
    entropy, boosted = (
        {"class_path": "losses.CrossEntropy"},
        {"class_path": "losses.ExpGB", "init_args": {"alpha": 0.5}},
    )
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
