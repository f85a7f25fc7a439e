"""Self-supervised runs through the command line: figures, resuming, bad input."""

import json
import shutil

import pytest
import torch
from helpers import CONFIGS, fault, fit, summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.cli import main
from models.methods.blockwise_ssl import BlockwiseSSL

SSL = CONFIGS / "blockwise_ssl" / "digits.yaml"
LOCO = CONFIGS / "loco" / "digits.yaml"
TINY = (
    "--model.network.plan=[8,8,M,16,16]",
    "--model.expand_dim=16",
    "--model.projector.widths=[16,16,16]",
    "--trainer.limit_train_batches=4",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
)


def run(folder, *options, config=SSL, name="run"):
    return fit(folder, *TINY, *options, config=config, name=name)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Two epochs in four blocks; for reading only."""
    return run(tmp_path_factory.mktemp("plain"))


def test_run_logs_every_block_and_its_views(plain):
    figures = summary(plain)["metrics"]
    assert {f"probe_online/block{k}/gap/top1" for k in range(1, 5)} <= set(figures)
    assert not any(name.startswith("test/block") for name in figures)
    events = EventAccumulator(str(plain))
    events.Reload()
    logged = set(events.Tags()["scalars"])
    for k in range(1, 5):
        own = {"loss", "lr", "grad_norm", "invariance", "redundancy", "pretext_top1", "deviation"}
        assert {f"train/block{k}/{figure}" for figure in own} <= logged
    assert "train/views" in events.Tags()["images"]
    assert (plain / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--model.noise=models.networks.FeatureNoise", "--model.noise.init_args.kind=all"),
        ("--model.epochs_per_block=1", "--trainer.max_epochs=4"),
        ("--data.views.levels=[0.25,1.0]", "--model.difficulty.mode=rising", "--model.difficulty.views=true"),
    ],
    ids=["plain", "noise", "sequential", "difficulty"],
)
def test_resumed_run_ends_as_an_uninterrupted_one(options, tmp_path):
    """Killed after an epoch: weights, BatchNorm, optimizers, views, noise and the online probe go on as they were."""
    more = [o for o in options if not o.startswith("--trainer.max_epochs")]
    epochs = 4 if len(more) < len(options) else 3
    whole = run(tmp_path / "whole", *more, f"--trainer.max_epochs={epochs}")
    if epochs == 4:  # fewer epochs than blocks are refused, so this one is stopped by steps
        run(tmp_path / "cut", *more, "--trainer.max_epochs=4", "--trainer.max_steps=8")
    else:
        run(tmp_path / "cut", *more, "--trainer.max_epochs=2")
    run(tmp_path / "cut", *more, f"--trainer.max_epochs={epochs}", "--ckpt_path=last")
    one, other = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for path in (whole, tmp_path / "cut" / "run")
    )
    for name in one:
        assert torch.equal(one[name], other[name]), name
    ours, theirs = (summary(path)["metrics"] for path in (whole, tmp_path / "cut" / "run"))
    for k in range(1, 5):
        assert ours[f"probe_online/block{k}/gap/top1"] == theirs[f"probe_online/block{k}/gap/top1"]


def test_probe_tells_how_good_every_block_is(plain, tmp_path, capsys):
    folder = shutil.copytree(plain, tmp_path / "run")
    before = {name: value.clone() for name, value in _weights(folder).items()}
    main(["probe", "--checkpoint", str(folder), "--epochs=2", "--k=5", "--trainer.accelerator=cpu"])
    figures = summary(folder)["metrics"]
    for k in range(1, 5):
        for kind in ("gap", "cbe"):
            assert 0 <= figures[f"probe_lin2/block{k}/{kind}/top1"] <= 1
            assert 0 <= figures[f"knn_k5_t0.1/block{k}/{kind}/top1"] <= 1
    assert all(torch.equal(before[name], value) for name, value in _weights(folder).items())
    assert "block" in capsys.readouterr().out


def _weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_overlapping_blocks_run_and_are_probed(tmp_path):
    folder = run(tmp_path, config=LOCO)
    main(["probe", "--checkpoint", str(folder), "--epochs=1", "--k=5", "--trainer.accelerator=cpu"])
    figures = summary(folder)["metrics"]
    assert "probe_lin1/block1/gap/top1" in figures
    assert "probe_lin1/block1/cbe/top1" not in figures  # the first block has no head
    assert "probe_lin1/block4/cbe/top1" in figures


def test_views_from_workers_one_image_after_the_other(tmp_path):
    folder = run(tmp_path, "--data.views.batched=false")
    assert summary(folder)["global_step"] == 8


@pytest.mark.parametrize("command", ["cost", "bench"])
def test_cost_and_bench_of_self_supervised_blocks(command, capsys):
    options = ["--steps=1", "--repetitions=1"] if command == "bench" else []
    main([command, "--config", str(SSL), "--json", *TINY[:3], "--trainer.accelerator=cpu", *options])
    out = capsys.readouterr().out
    figures = json.loads(out[out.index("{") :])
    assert figures["peak_activation_bytes"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.batch_size=1"], "batch_size must be at least 2"),
        (["--data.views=null"], "give the data views"),
        (["--model.num_blocks=9"], "cannot be cut into 9 blocks"),
        (
            ["--model.pooling=models.networks.LocalPooling", "--model.expand_dim=24"],
            "choose a multiple of the channels",
        ),
        (["--model.difficulty.easy_negatives=4"], "needs losses.SubsampledNTXent"),
        (["--model.difficulty.views=true"], "set data.views.levels"),
        (["--model.difficulty.easiest=2"], "between 0 and 1"),
        (["--model.epochs_per_block=3"], "4 blocks of 3 epochs"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(options, message, tmp_path, capsys):
    command = ["fit", "--config", str(SSL), f"--runs={tmp_path}", "--trainer.max_epochs=2", *TINY, *options]
    assert message in fault(capsys, *command)


def test_a_loss_that_is_no_number_is_told_by_the_blocks_name(tmp_path, capsys, monkeypatch):
    healthy = BlockwiseSSL.pair_loss

    def poisoned(self, k, *rest):
        return healthy(self, k, *rest) * (float("nan") if (k, self.global_step) == (2, 1) else 1)

    monkeypatch.setattr(BlockwiseSSL, "pair_loss", poisoned)
    message = fault(capsys, "fit", "--config", str(SSL), f"--runs={tmp_path}", *TINY)
    assert "The loss of block3 is nan at step 2" in message


def test_collapse_is_told_by_the_blocks_name(tmp_path, capsys):
    class_path = f"{__name__}.Constant"
    message = fault(
        capsys,
        "fit",
        "--config",
        str(SSL),
        f"--runs={tmp_path}",
        *TINY[:2],
        *TINY[3:],
        f"--model.projector={class_path}",
    )
    assert "block1 has collapsed" in message


class Constant(torch.nn.Linear):
    """A projector that forgets what it reads."""

    def __init__(self, input_dim: int) -> None:
        super().__init__(input_dim, 4)

    def forward(self, x):
        return super().forward(0 * x)


def test_prediction_is_refused(plain, capsys):
    for command in ("predict", "validate", "test"):
        message = fault(
            capsys, command, "--config", str(plain / "config.yaml"), f"--ckpt_path={plain}/checkpoints/last.ckpt"
        )
        assert "predicts no classes" in message


def test_a_training_config_is_no_protocol_of_a_probe(plain, capsys):
    message = fault(capsys, "probe", "--config", str(SSL), "--checkpoint", str(plain))
    assert "trains a model" in message
