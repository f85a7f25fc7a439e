"""Self-supervised runs through the command line: figures, resuming, bad input."""

import json
import shutil
from functools import partial
from itertools import product

import pytest
import torch
import yaml
from helpers import CONFIGS, fault, fit, summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.cli import main
from experiments.studies.released_blocks import WIDTHS, write_run
from models.methods.blockwise_ssl import BlockwiseSSL
from models.networks.heads.embeddings import BiasFreeProjector
from models.networks.vgg import VGG

SSL = CONFIGS / "blockwise_ssl" / "digits.yaml"
TINY = (
    "--model.network.plan=[8,8,M,16,16]",
    "--model.expand_dim=16",
    "--model.projector.widths=[16,16,16]",
    "--trainer.limit_train_batches=4",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
)


def run(folder, *options, config=SSL):
    return fit(folder, *TINY, *options, config=config)


def checkpoint_of(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Two epochs in four blocks; for reading only."""
    return run(tmp_path_factory.mktemp("plain"))


def test_run_logs_every_block_and_its_views(plain):
    figures = summary(plain)["metrics"]
    assert {f"probe_online/block{k}/gap/top1" for k in range(1, 5)} <= set(figures)
    assert not any(name.startswith("test/block") for name in figures)
    events = EventAccumulator(str(plain)).Reload()
    logged = set(events.Tags()["scalars"])
    for k in range(1, 5):
        own = {"loss", "lr", "grad_norm", "invariance", "redundancy", "pretext_top1", "deviation"}
        assert {f"train/block{k}/{figure}" for figure in own} <= logged
    assert "train/views" in events.Tags()["images"]
    assert (plain / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize(
    ("options", "cut"),
    [
        (
            (
                "--model.noise=models.networks.FeatureNoise",
                "--model.noise.init_args.kind=all",
                "--data.views.levels=[0.25,1.0]",
                "--model.difficulty.mode=rising",
                "--model.difficulty.views=true",
            ),
            "--trainer.max_epochs=1",
        ),
        # Fewer epochs than blocks are refused: this one is stopped by steps.
        (("--model.num_blocks=2", "--model.epochs_per_block=1"), "--trainer.max_steps=4"),
    ],
    ids=["noise and difficulty", "sequential"],
)
def test_resumed_run_ends_as_an_uninterrupted_one(options, cut, tmp_path):
    """Killed after an epoch: weights, BatchNorm, optimizers, views, noise and the online probe go on as they were."""
    whole = run(tmp_path / "whole", *options)
    run(tmp_path / "cut", *options, cut)
    resumed = run(tmp_path / "cut", *options, "--ckpt_path=last")
    one, other = checkpoint_of(whole), checkpoint_of(resumed)
    for name, weight in one["state_dict"].items():
        assert torch.equal(weight, other["state_dict"][name]), name
    for block, probe in one["callbacks"]["OnlineProbe"].items():
        theirs = other["callbacks"]["OnlineProbe"][block]
        assert torch.equal(probe["head"]["weight"], theirs["head"]["weight"])
        momenta = (state["optimizer"]["state"][0]["momentum_buffer"] for state in (probe, theirs))
        assert torch.equal(*momenta)


def test_every_block_is_probed_and_observed(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "run")
    main(["probe", f"--checkpoint={folder}", "--epochs=2", "--k=5", "--trainer.accelerator=cpu"])
    figures = summary(folder)["metrics"]
    for k in range(1, 5):
        for kind in ("gap", "cbe"):
            assert 0 <= figures[f"probe_lin2/block{k}/{kind}/top1"] <= 1
            assert 0 <= figures[f"knn_k5_t0.1/block{k}/{kind}/top1"] <= 1
    page = EventAccumulator(str(folder)).Reload().Tensors("probe/text_summary")[0].tensor_proto.string_val[0].decode()
    rows = [tuple(row.split()[1:4:2]) for row in page.splitlines()]
    assert rows[2:] == list(product("1234", ("gap", "cbe")))
    main(["observe", f"--checkpoint={folder}", "--epochs=1", "--images=100", "--every=block"])
    observed = json.loads((folder / "observations.json").read_text())["metrics"]
    assert "observe/block2/ncm_test" in observed
    assert not any("confident" in name for name in observed)


def test_blocks_that_have_not_learned_are_not_probed(tmp_path):
    one_by_one = ("--model.num_blocks=2", "--model.epochs_per_block=1", "--trainer.max_steps=4")
    folder = run(tmp_path, *one_by_one)
    main(["probe", f"--checkpoint={folder}", "--epochs=1", "--k=5", "--trainer.accelerator=cpu"])
    figures = summary(folder)["metrics"]
    assert "probe_online/block1/gap/top1" in figures
    assert "probe_lin1/block1/gap/top1" in figures
    assert not any("block2" in name for name in figures)


def test_overlapping_blocks_run_and_are_probed(tmp_path):
    folder = run(tmp_path, "--trainer.max_epochs=1", config=CONFIGS / "loco" / "digits.yaml")
    main(["probe", f"--checkpoint={folder}", "--epochs=1", "--k=5", "--trainer.accelerator=cpu"])
    figures = summary(folder)["metrics"]
    assert "probe_lin1/block1/gap/top1" in figures
    assert "probe_lin1/block1/cbe/top1" not in figures  # the first block has no head
    assert "probe_lin1/block4/cbe/top1" in figures


@pytest.mark.parametrize("command", [["cost"], ["bench", "--steps=1", "--repetitions=1"]], ids=["cost", "bench"])
def test_cost_and_bench_of_self_supervised_blocks(command, capsys):
    main([*command, "--config", str(SSL), "--json", *TINY[:3], "--trainer.accelerator=cpu"])
    out = capsys.readouterr().out
    assert json.loads(out[out.index("{") :])["peak_activation_bytes"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.views=null"], "give the data views"),
        (["--model.difficulty.views=true"], "set data.views.levels"),
        (["--model.difficulty.easy_negatives=4"], "needs losses.SubsampledNTXent"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(options, message, tmp_path, capsys):
    assert message in fault(capsys, "fit", "--config", str(SSL), f"--runs={tmp_path}", *TINY, *options)


@pytest.mark.parametrize("command", ["predict", "validate", "test"])
def test_prediction_is_refused(command, plain, capsys):
    checkpoint = f"--ckpt_path={plain}/checkpoints/last.ckpt"
    assert "predicts no classes" in fault(capsys, command, "--config", str(plain / "config.yaml"), checkpoint)


def test_released_blocks_are_probed_as_a_run(tmp_path):
    """A small network and its recipe in place of ImageNet's."""
    recipe = yaml.safe_load(SSL.read_text())
    plan = partial(VGG, plan=recipe["model"]["init_args"]["network"]["init_args"]["plan"])
    model = BlockwiseSSL(plan, (1, 8, 8), 10, expand_dim=128, projector=partial(BiasFreeProjector, widths=WIDTHS))
    write_run(model, recipe, tmp_path / "released")
    main(["probe", f"--checkpoint={tmp_path / 'released'}", "--epochs=1", "--k=5", "--blocks=[4]"])
    found = json.loads((tmp_path / "released" / "probe.json").read_text())["metrics"]
    assert 0 <= found["probe_lin1/block4/cbe/top1"] <= 1
