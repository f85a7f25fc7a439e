"""``probe``: linear classifiers and kNN on the frozen features of every block of a run."""

import json
import re
from functools import partial

import pytest
import torch
from helpers import DIGITS, fault, summary
from reference.knn import slow_knn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from datamodules.digits import Digits
from experiments.cli import main
from experiments.probing.features import Features, Splits, extract
from experiments.probing.knn import knn_classes
from experiments.probing.linear_probe import LinearProbe, fit_linear
from experiments.probing.probe import probe_network
from experiments.probing.probe_results import Findings, record
from experiments.probing.protocol import Protocol
from experiments.probing.saved_network import Checkpoint
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.vgg import VGG

CPU = torch.device("cpu")


def probe(run, *options):
    main(["probe", f"--checkpoint={run}", "--epochs=2", "--k=5", *options])


def blobs(count, seed=0):
    """Five features of three classes."""
    labels = torch.arange(count) % 3
    noise = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    return Features({"block1/gap": noise + labels[:, None]}, labels)


def linear_probe(*rates):
    return LinearProbe({"block1/gap": 5}, {"block1/gap": rates}, 3, CPU)


# -- the linear probe -----------------------------------------------------------------------------


def test_all_learning_rates_at_once_are_separate_heads():
    """Learning rate r on a loss is learning rate 1 on r times the loss, momentum and schedule included."""
    features, rates = blobs(100), (0.03, 0.1, 0.3, 1.0)
    joint = linear_probe(*rates).fit(features, epochs=4, batch_size=32).heads["block1/gap"]
    for row, rate in enumerate(rates):
        generator = torch.Generator().manual_seed(0)
        head = nn.Linear(5, 3)
        nn.init.normal_(head.weight, std=0.01, generator=generator)
        nn.init.zeros_(head.bias)
        optimizer = SGD(head.parameters(), lr=rate, momentum=0.9)
        schedule = CosineAnnealingLR(optimizer, 4)
        for _ in range(4):
            for chosen in torch.randperm(100, generator=generator).split(32):
                optimizer.zero_grad()
                F.cross_entropy(head(features.kinds["block1/gap"][chosen]), features.labels[chosen]).backward()
                optimizer.step()
            schedule.step()
        torch.testing.assert_close(joint.weight[3 * row : 3 * row + 3], head.weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(joint.bias[3 * row : 3 * row + 3], head.bias, atol=1e-5, rtol=1e-4)


def test_a_learning_rate_that_diverges_harms_no_other():
    features = blobs(60)
    features.kinds["block1/gap"].mul_(1e4)
    alone, beside = (linear_probe(*rates).fit(features, 3, 16) for rates in ((1e-6,), (1e-6, 1e38)))
    assert not beside.heads["block1/gap"].weight[3:].isfinite().all()
    assert torch.equal(beside.heads["block1/gap"].weight[:3], alone.heads["block1/gap"].weight)


def test_the_learning_rate_is_chosen_on_held_out_images_from_which_the_final_classifier_learns_too(monkeypatch):
    calls, fit, top1 = [], LinearProbe.fit, LinearProbe.top1

    def noted(self, x, *more):
        calls.append(("fit", len(x), *more, self._generator.initial_seed()))
        return fit(self, x, *more)

    monkeypatch.setattr(LinearProbe, "fit", noted)
    monkeypatch.setattr(LinearProbe, "top1", lambda self, x: calls.append(("top1", len(x))) or top1(self, x))
    _, rates = fit_linear(blobs(90), 30, 3, Protocol(3, (1e-9, 0.3), batch_size=20, seed=4), CPU)
    assert calls == [("fit", 60, 3, 20, 4), ("top1", 30), ("fit", 90, 3, 20, 4)]
    assert rates == {"block1/gap": 0.3}


# -- kNN ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 60])
def test_knn_is_the_obvious_loop_in_one_part_or_in_several(k, monkeypatch):
    bank, queries = blobs(60, seed=2), blobs(40, seed=3)
    arguments = (bank.kinds["block1/gap"], bank.labels, queries.kinds["block1/gap"], k, 0.1)
    expected = slow_knn(*arguments)
    assert torch.equal(knn_classes(*arguments), expected)
    monkeypatch.setattr("experiments.probing.knn._CHUNK", 180)
    assert torch.equal(knn_classes(*arguments), expected)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8])
def test_ties_go_to_the_lower_class(k):
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    bank, labels = corners.repeat(3, 1), torch.tensor([2, 2, 0, 1, 1, 0, 2, 2, 0, 1, 1, 0])
    queries = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [3.0, 0.0], [0.0, -2.0]])
    assert torch.equal(knn_classes(bank, labels, queries, k, 0.1), slow_knn(bank, labels, queries, k, 0.1))


# -- features ---------------------------------------------------------------------------------------


def test_what_is_held_out_of_the_known_images_is_the_validation_split(monkeypatch):
    def stop(*arguments):
        raise StopIteration(arguments[:2])

    data, model = Digits(), DecoupledGreedy(partial(VGG, plan=(8, "M", 8)), (1, 8, 8), 10, 2)
    splits = Splits.of(data)
    monkeypatch.setattr("experiments.probing.probe.fit_linear", stop)
    with pytest.raises(StopIteration) as stopped:
        probe_network(model, splits, [1], Protocol(k=5), Findings())
    known, held_out = stopped.value.args[0]
    assert torch.equal(known.labels[-held_out:], splits.val.labels)


def test_features_are_those_of_the_unaugmented_images_in_order_and_later_blocks_are_not_computed():
    model, data = DecoupledGreedy(partial(VGG, plan=(8, 8, "M", 16, 16)), (1, 8, 8), 10, 4), Digits(batch_size=50)
    model.blocks[2].register_forward_pre_hook(lambda *_: pytest.fail("block 3 was computed"))
    splits = Splits.of(data)
    features = extract(model, splits, [splits.train, splits.val], [2])
    assert set(features.kinds) == {"block2/gap"}
    assert torch.equal(features.labels, torch.cat([splits.train.labels, splits.val.labels]))
    raw = splits.val.__getitems__(torch.arange(5))
    rows = model.eval().block_features(data.normalised(raw.images), last=2)["block2/gap"]
    torch.testing.assert_close(features.kinds["block2/gap"][-len(splits.val) :][:5], rows)


def test_a_run_that_validated_on_the_test_split_is_probed_without_it():
    splits = Splits.of(Digits(validate_on_test=True))
    assert (len(splits.val), len(splits.test)) == (144, 360)


# -- the command ------------------------------------------------------------------------------------


def test_metrics_go_to_summary_tensorboard_and_screen(copied, capsys):
    before, checkpoint = summary(copied), (copied / "checkpoints" / "last.ckpt").read_bytes()
    probe(copied)
    printed = capsys.readouterr().out
    assert re.search(r"features +linear", printed)
    assert "images/s through the frozen network" in printed
    after = summary(copied)
    added = {name: value for name, value in after["metrics"].items() if name not in before["metrics"]}
    shares = {f"{judge}/block{k}/gap/top1" for judge in ("probe_lin2", "knn_k5_t0.1") for k in range(1, 5)}
    rates = {f"probe_lin2/block{k}/gap/lr" for k in range(1, 5)}
    assert set(added) == shares | rates | {f"effective_rank/block{k}/gap" for k in range(1, 5)}
    assert all(added[name] in (0.03, 0.1, 0.3, 1.0) for name in rates)
    assert all(360 * added[name] == pytest.approx(round(360 * added[name])) for name in shares)  # of the test images
    assert {**after, "metrics": before["metrics"]} == before
    assert before["metrics"].items() <= after["metrics"].items()
    assert (copied / "checkpoints" / "last.ckpt").read_bytes() == checkpoint
    page = EventAccumulator(str(copied)).Reload()
    for name, value in added.items():
        (event,) = page.Scalars(name)
        assert (event.step, event.value) == (8, pytest.approx(value))
    assert "| 4 | gap |" in page.Tensors("probe/text_summary")[0].tensor_proto.string_val[0].decode()


def test_random_and_supervised_controls_of_some_blocks(copied, capsys, monkeypatch):
    rates = []
    monkeypatch.setattr(
        "experiments.probing.supervised.SGD", lambda params, lr, **more: rates.append(lr) or SGD(params, lr, **more)
    )
    probe(copied, "--random=true", "--supervised_epochs=1", "--blocks=[4]")
    metrics = summary(copied)["metrics"]
    assert {name.split("/")[-3] for name in metrics if "probe_lin" in name or "knn" in name} == {"block4"}
    assert metrics["random/knn_k5_t0.1/block4/gap/top1"] != metrics["knn_k5_t0.1/block4/gap/top1"]
    assert "random/probe_lin2/block4/gap/top1" in metrics
    assert 0 < metrics["supervised/test/top1"] <= 1
    assert rates == [0.1 * 64 / 128]
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
    saved = Checkpoint(copied / "checkpoints" / "last.ckpt", {"epoch": 1, "global_step": 8, "state_dict": {}})
    record(Findings({"knn": 0.5}), saved, "other data")
    assert summary(copied) == before
    (copied / "summary.json").unlink()
    probe(copied)
    assert not (copied / "summary.json").exists()
    assert json.loads((copied / "probe.json").read_text())["global_step"] == 8


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
    assert re.search("images of 1×8×8, .* 1×28×28", said("--data=datamodules.FashionMNIST"))
    assert "trains a model" in said(f"--config={DIGITS}")
    assert "another network" in said("--model.network.plan=[16,8,M,16,16]")
    last = copied / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    assert "is damaged" in said()
    last.unlink()
    assert "There is no checkpoint" in said()
    (copied / "config.yaml").unlink()
    assert "no run folder" in said()
    assert "There is no run" in fault(capsys, "probe", f"--checkpoint={tmp_path / 'nowhere'}")
    assert "probe needs a finished run: give --checkpoint RUN" in fault(capsys, "probe")
