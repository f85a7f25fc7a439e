"""``probe``: linear classifiers and kNN on the frozen features of every block of a run."""

import json
import re
from functools import partial

import pytest
import torch
import yaml
from helpers import CONFIGS, fault, fit, summary
from reference.knn import slow_knn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

import experiments.probing.probe as probe_module
from datamodules.digits import Digits
from experiments.cli import main
from experiments.probing.features import Features, Splits, extract
from experiments.probing.knn import knn_classes
from experiments.probing.linear_probe import LinearProbe
from experiments.probing.probe import linear_probes
from experiments.probing.protocol import Protocol
from experiments.run.checkpoint import load_checkpoint
from models.methods.decoupled_greedy import DecoupledGreedy

QUICK = ("--epochs=2", "--k=5")


def probe(run, *options):
    main(["probe", f"--checkpoint={run}", *QUICK, *options])


def blobs(count, num_classes=3, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_classes
    return Features({"block1/gap": torch.randn(count, d, generator=generator) + labels[:, None]}, labels)


# -- the linear probe -----------------------------------------------------------------------------


def test_all_learning_rates_at_once_are_separate_heads():
    """Learning rate r on a loss is learning rate 1 on r times the loss, momentum and schedule included."""
    features, rates = blobs(100), (0.03, 0.1, 0.3, 1.0)
    joint = LinearProbe({"block1/gap": 5}, {"block1/gap": rates}, 3, torch.device("cpu"))
    start = joint.heads["block1/gap"].weight.detach().clone()
    joint.fit(features, epochs=4, batch_size=32)
    for row, rate in enumerate(rates):
        head = nn.Linear(5, 3)
        head.weight = nn.Parameter(start[3 * row : 3 * row + 3].clone())
        nn.init.zeros_(head.bias)
        optimizer = SGD(head.parameters(), lr=rate, momentum=0.9)
        schedule, generator = CosineAnnealingLR(optimizer, 4), torch.Generator().manual_seed(0)
        nn.init.normal_(torch.empty(3, 5), generator=generator)  # the weights' draw
        for _ in range(4):
            for chosen in torch.randperm(100, generator=generator).split(32):
                optimizer.zero_grad()
                F.cross_entropy(head(features.kinds["block1/gap"][chosen]), features.labels[chosen]).backward()
                optimizer.step()
            schedule.step()
        ours = joint.heads["block1/gap"]
        torch.testing.assert_close(ours.weight[3 * row : 3 * row + 3], head.weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.bias[3 * row : 3 * row + 3], head.bias, atol=1e-5, rtol=1e-4)


def test_first_weights_are_small_and_the_same_for_all_learning_rates():
    head = LinearProbe({"block1/gap": 500}, {"block1/gap": (0.1, 1.0)}, 10, torch.device("cpu")).heads["block1/gap"]
    assert torch.equal(head.weight[:10], head.weight[10:])
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not head.bias.any()


def test_a_learning_rate_that_diverges_harms_no_other():
    features = blobs(60)
    features.kinds["block1/gap"].mul_(1e4)
    alone = LinearProbe({"block1/gap": 5}, {"block1/gap": (1e-6,)}, 3, torch.device("cpu")).fit(features, 3, 16)
    beside = LinearProbe({"block1/gap": 5}, {"block1/gap": (1e-6, 1e38)}, 3, torch.device("cpu")).fit(features, 3, 16)
    assert not beside.heads["block1/gap"].weight[3:].isfinite().all()
    assert torch.equal(beside.heads["block1/gap"].weight[:3], alone.heads["block1/gap"].weight)


def test_the_learning_rate_is_chosen_on_the_validation_images_alone():
    known, test = blobs(90), blobs(30, seed=1)
    choose = partial(linear_probes, num_classes=3, protocol=Protocol(epochs=3), device=torch.device("cpu"))
    metrics = choose(known, 30, test)
    wrong = Features(test.kinds, (test.labels + 1) % 3)
    assert choose(known, 30, wrong)["block1/gap/lr"] == metrics["block1/gap/lr"]
    assert choose(known, 30, wrong)["block1/gap/top1"] != metrics["block1/gap/top1"]


def test_the_final_classifier_learns_from_validation_images_too(monkeypatch):
    sizes, original = [], LinearProbe.fit
    monkeypatch.setattr(
        LinearProbe,
        "fit",
        lambda self, features, *args: (sizes.append(len(features)), original(self, features, *args))[1],
    )
    linear_probes(blobs(90), 30, blobs(30), 3, Protocol(epochs=1), torch.device("cpu"))
    assert sizes == [60, 90]


# -- kNN ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 60])
def test_knn_is_the_obvious_loop(k):
    bank, queries = blobs(60, seed=2), blobs(40, seed=3)
    arguments = (bank.kinds["block1/gap"], bank.labels, queries.kinds["block1/gap"])
    assert torch.equal(knn_classes(*arguments, k, 0.1), slow_knn(*arguments, k, 0.1))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8])
def test_ties_go_to_the_lower_class(k):
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    bank, labels = corners.repeat(3, 1), torch.tensor([2, 2, 0, 1, 1, 0, 2, 2, 0, 1, 1, 0])
    queries = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [3.0, 0.0], [0.0, -2.0]])
    assert torch.equal(knn_classes(bank, labels, queries, k, 0.1), slow_knn(bank, labels, queries, k, 0.1))


def test_chunks_change_nothing(monkeypatch):
    bank, queries = blobs(60, seed=2), blobs(40, seed=3)
    arguments = (bank.kinds["block1/gap"], bank.labels, queries.kinds["block1/gap"], 7, 0.1)
    whole = knn_classes(*arguments)
    monkeypatch.setattr("experiments.probing.knn._CHUNK", 180)
    assert torch.equal(knn_classes(*arguments), whole)


# -- features ---------------------------------------------------------------------------------------


def loaded(run):
    config = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    torch.manual_seed(0)
    from models.networks.heads.classifiers import AuxHead
    from models.networks.vgg import VGG

    plan = tuple(config["network"]["init_args"]["plan"])
    model = DecoupledGreedy(partial(VGG, plan=plan), (1, 8, 8), 10, 4, head=partial(AuxHead, convs=1, fcs=2, hidden=16))
    model.load_state_dict(load_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"])
    return model


def test_features_are_those_of_the_unaugmented_images_in_order(finished):
    data = Digits(batch_size=50)
    splits = Splits.of(data)
    features = extract(loaded(finished), splits, [splits.train, splits.val], [2])
    assert set(features.kinds) == {"block2/gap"}
    model = loaded(finished).eval()
    expected_labels = torch.cat([splits.train.labels, splits.val.labels])
    assert torch.equal(features.labels, expected_labels)
    raw = splits.val.__getitems__(torch.arange(5))
    with torch.no_grad():
        rows = model.block_features(data.normalised(raw.images))["block2/gap"]
    held_out = len(splits.val)
    torch.testing.assert_close(features.kinds["block2/gap"][-held_out:][:5], rows)


def test_a_run_that_validated_on_the_test_split_is_probed_without_it():
    splits = Splits.of(Digits(validate_on_test=True))
    assert len(splits.val) == 144
    assert len(splits.test) == 360


def test_later_blocks_are_not_computed(finished):
    model = loaded(finished)
    model.blocks[2].register_forward_pre_hook(lambda *_: pytest.fail("block 3 was computed"))
    assert set(model.block_features(torch.zeros(2, 1, 8, 8), last=2)) == {"block1/gap", "block2/gap"}


# -- the command ------------------------------------------------------------------------------------


def test_metrics_go_to_summary_tensorboard_and_screen(copied, capsys):
    before = summary(copied)
    probe(copied)
    printed = capsys.readouterr().out
    assert re.search(r"features +linear", printed)
    assert "images/s through the frozen network" in printed
    after = summary(copied)
    added = {name: value for name, value in after["metrics"].items() if name not in before["metrics"]}
    blocks = range(1, 5)
    assert set(added) == {
        *(f"probe_lin2/block{k}/gap/top1" for k in blocks),
        *(f"probe_lin2/block{k}/gap/lr" for k in blocks),
        *(f"knn_k5_t0.1/block{k}/gap/top1" for k in blocks),
        *(f"effective_rank/block{k}/gap" for k in blocks),
    }
    assert all(added[f"probe_lin2/block{k}/gap/lr"] in (0.03, 0.1, 0.3, 1.0) for k in blocks)
    assert {**after, "metrics": before["metrics"]} == before
    assert before["metrics"].items() <= after["metrics"].items()
    page = EventAccumulator(str(copied)).Reload()
    for name, value in added.items():
        (event,) = page.Scalars(name)
        assert (event.step, event.value) == (8, pytest.approx(value))
    assert "| 4 | gap |" in page.Tensors("probe/text_summary")[0].tensor_proto.string_val[0].decode()


def test_network_is_bit_identical_after_a_probe(copied, monkeypatch):
    seen, original = [], probe_module.probe_network

    def watched(model, *args):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        original(model, *args)
        seen.append(all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()))
        assert set(before) == set(model.state_dict())
        assert any("running_mean" in name for name in before)

    monkeypatch.setattr(probe_module, "probe_network", watched)
    checkpoint = (copied / "checkpoints" / "last.ckpt").read_bytes()
    probe(copied, "--random=true")
    assert seen == [True, True]
    assert (copied / "checkpoints" / "last.ckpt").read_bytes() == checkpoint


def test_the_same_probe_finds_the_same_metrics(copied):
    probe(copied)
    before = summary(copied)
    probe(copied)
    assert summary(copied) == before


def test_some_blocks(copied):
    probe(copied, "--blocks=[1,3]")
    blocks = {name.split("/")[1] for name in summary(copied)["metrics"] if name.startswith(("probe", "knn"))}
    assert blocks == {"block1", "block3"}


def test_random_and_supervised_controls(copied, capsys):
    probe(copied, "--random=true", "--supervised_epochs=1", "--blocks=[4]")
    metrics = summary(copied)["metrics"]
    assert metrics["random/knn_k5_t0.1/block4/gap/top1"] != metrics["knn_k5_t0.1/block4/gap/top1"]
    assert "random/probe_lin2/block4/gap/top1" in metrics
    assert 0 < metrics["supervised/test/top1"] <= 1
    printed = capsys.readouterr().out
    assert "random linear" in printed
    assert "supervised, end to end" in printed


def test_metrics_of_other_weights_or_of_an_unfinished_run_stay_out_of_the_summary(copied, capsys):
    before = summary(copied)
    probe(copied / "checkpoints" / "previous.ckpt")
    assert summary(copied) == before
    found = json.loads((copied / "probe.json").read_text())
    assert (found["checkpoint"], found["global_step"], found["dataset"]) == ("previous.ckpt", 4, "Digits")
    assert "not the final weights" in capsys.readouterr().out
    (copied / "summary.json").unlink()
    probe(copied)
    assert not (copied / "summary.json").exists()
    assert json.loads((copied / "probe.json").read_text())["global_step"] == 8


@pytest.mark.parametrize("config", ["neuron_groups", "infopro", "backprop"])
def test_other_methods(config, tmp_path):
    options = ("--trainer.accelerator=cpu", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false")
    folder = fit(tmp_path, *options, "--trainer.max_epochs=1", config=CONFIGS / config / "digits.yaml")
    probe(folder)
    found = summary(folder)
    names = {f"probe_lin2/block{k}/gap/top1" for k in range(1, found["num_blocks"] + 1)}
    assert names == {n for n in found["metrics"] if n.startswith("probe_lin2") and n.endswith("top1")}


class TwoKinds(DecoupledGreedy):
    """Has another kind of features, as methods with projectors do."""

    def block_features(self, images, last=None):
        features = super().block_features(images, last)
        return features | {name.replace("gap", "cbe"): 2 * values[:, :3] for name, values in features.items()}


def test_all_kinds_of_features_are_probed(copied, monkeypatch, capsys):
    monkeypatch.setattr("models.DecoupledGreedy", TwoKinds)
    probe(copied, "--blocks=[2]")
    assert {"probe_lin2/block2/cbe/top1", "knn_k5_t0.1/block2/cbe/top1"} <= set(summary(copied)["metrics"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = lines.index(["block", "features", "linear", "kNN", "rank"])
    assert [line[:2] for line in lines[start + 2 : start + 4]] == [["2", "gap"], ["2", "cbe"]]


def test_help_needs_no_run(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["probe", "--help"])
    assert stop.value.code == 0
    assert "--supervised_epochs" in capsys.readouterr().out


# -- mistakes ---------------------------------------------------------------------------------------


def test_mistakes_are_told_in_one_sentence(copied, capsys, tmp_path):
    def said(*options):
        return fault(capsys, "probe", f"--checkpoint={copied}", *options)

    assert "has blocks [1, 2, 3, 4], not [3, 7]" in said("--blocks=[7,3]")
    assert "k is 5000, but only 1437 images" in said("--k=5000")
    assert "no learning rate" in said("--learning_rates=[]")
    assert "epochs" in said("--epochs=0")
    assert "Did you mean temperature?" in said("--temprature=1")
    wide = said("--data=datamodules.FashionMNIST")
    assert "images of 1×8×8" in wide
    assert "1×28×28" in wide
    last = copied / "checkpoints" / "last.ckpt"
    assert "another network" in said("--model.network.plan=[16,8,M,16,16]")
    last.write_bytes(last.read_bytes()[:-1000])
    assert "is damaged" in said()
    last.unlink()
    assert "There is no checkpoint" in said()
    (copied / "config.yaml").unlink()
    assert "no run folder" in said()
    assert "There is no run" in fault(capsys, "probe", f"--checkpoint={tmp_path / 'nowhere'}")
    assert "give --checkpoint RUN" in fault(capsys, "probe")


class MoreDigits(Digits):
    """Digits that claim to be of more classes."""

    num_classes = 12


def test_another_number_of_classes_is_told(copied, capsys):
    message = fault(capsys, "probe", f"--checkpoint={copied}", f"--data={MoreDigits.__module__}.MoreDigits")
    assert "another network" in message
