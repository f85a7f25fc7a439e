"""Linear probes of all widths of a slimmable network, shared or distilled: against a plain loop, and by command."""

import copy
import re
from functools import partial

import pytest
import torch
from helpers import CONFIGS, fit, summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from datamodules.augment import Augment
from datamodules.digits import Digits
from experiments.cli import main
from experiments.probing.features import Features, Splits
from experiments.probing.linear_probe import DistilledProbe, LinearProbe, SharedProbe, fit_linear
from experiments.probing.probe import probe_network
from experiments.probing.probe_results import Findings
from experiments.probing.protocol import Protocol
from losses.info_nce import QueueContrast
from models.methods.slimclr import SlimCLR
from models.networks.vgg import VGG

CPU = torch.device("cpu")
WIDE, NARROW = "block1/gap", "block1/w0.5"


def features(count=120, correlated=True, seed=0):
    """Four features of which the first two are a narrower network's; the label is theirs and the others' together."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    labels = (x[:, 0] + x[:, 2] > 0).long()
    if correlated:
        x[:, 2:] = x[:, 2:] + 2 * x[:, :2]
    return Features({WIDE: x, NARROW: x[:, :2]}, labels)


def shared(*rates, **options):
    protocol = Protocol(epochs=3, batch_size=32, **options)
    return SharedProbe({WIDE: 4, NARROW: 2}, {WIDE: rates, NARROW: rates}, 2, CPU, protocol)


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_it_is_one_layer_that_learns_from_the_sum_of_the_losses(decay):
    known, rates = features(), (0.1, 0.5)
    joint = shared(*rates, weight_decay=decay)
    [heads] = joint.heads.values()
    first = copy.deepcopy(heads[0])
    joint.fit(known)
    for row, rate in enumerate(rates):
        mine = copy.deepcopy(first)
        optimizer = SGD(mine.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
        schedule = CosineAnnealingLR(optimizer, 3)
        generator = torch.Generator().manual_seed(0)
        torch.empty(2, 4).normal_(generator=generator)  # the weights of both kinds are drawn before
        torch.empty(2, 2).normal_(generator=generator)
        for _ in range(3):
            for batch in known.epoch(32, generator):
                x = batch.kinds[WIDE]
                narrow = F.linear(x[:, :2], mine.weight[:, :2], mine.bias)
                loss = F.cross_entropy(mine(x), batch.labels) + F.cross_entropy(narrow, batch.labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
        torch.testing.assert_close(heads[row].weight, mine.weight)
        right = {WIDE: mine(known.kinds[WIDE]), NARROW: F.linear(known.kinds[NARROW], mine.weight[:, :2], mine.bias)}
        for kind, logits in right.items():
            expected = (logits.argmax(1) == known.labels).float().mean().item()
            assert joint.accuracy(known)[kind][row] == pytest.approx(expected)


def test_all_widths_have_one_learning_rate_the_best_on_average():
    found = SharedProbe.best({WIDE: [0.9, 0.8, 0.1], NARROW: [0.1, 0.7, 0.9]})
    assert found == {WIDE: 1, NARROW: 1}
    assert LinearProbe.best({WIDE: [0.9, 0.8, 0.1], NARROW: [0.1, 0.7, 0.9]}) == {WIDE: 0, NARROW: 2}
    known, protocol = features(), Protocol(epochs=1, learning_rates=(0.01, 0.1))
    probe, rates = fit_linear(known, known, known, 2, protocol, CPU, make=SharedProbe)
    assert isinstance(probe, SharedProbe)
    assert len({*rates.values()}) == 1


@pytest.mark.parametrize("sigmoid", [False, True])
def test_narrower_heads_learn_as_much_from_the_widest_one_as_from_labels(sigmoid):
    """Two learning rates side by side; the widest head learns from labels alone."""
    known, rates = features(), (0.1, 0.5)
    protocol = Protocol(epochs=2, batch_size=32, sigmoid=sigmoid)
    probe = DistilledProbe({NARROW: 2, WIDE: 4}, {NARROW: rates, WIDE: rates}, 2, CPU, protocol)
    first = {kind: copy.deepcopy(heads[0]) for kind, heads in probe.heads.items()}
    probe.fit(known)
    for row, rate in enumerate(rates):
        mine = copy.deepcopy(first)
        optimizer = SGD([p for head in mine.values() for p in head.parameters()], lr=rate, momentum=0.9)
        schedule = CosineAnnealingLR(optimizer, 2)
        generator = torch.Generator().manual_seed(0)
        torch.empty(2, 2).normal_(generator=generator)  # the weights of both kinds are drawn before
        torch.empty(2, 4).normal_(generator=generator)
        for _ in range(2):
            for batch in known.epoch(32, generator):
                z = {kind: head(batch.kinds[kind]) for kind, head in mine.items()}
                z = {kind: logits.sigmoid() for kind, logits in z.items()} if sigmoid else z
                to_widest = F.cross_entropy(z[NARROW], z[WIDE].detach().softmax(1))
                narrow = (F.cross_entropy(z[NARROW], batch.labels) + to_widest) / 2
                loss = F.cross_entropy(z[WIDE], batch.labels) + narrow
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
        for kind, head in mine.items():
            torch.testing.assert_close(probe.heads[kind][row].weight, head.weight)


def squares(x, y):
    """The weights that least squares gives, and the error that they leave."""
    w = torch.linalg.solve(x.T @ x, x.T @ y)
    return w, (x @ w - y).square().sum()


@pytest.mark.parametrize("correlated", [False, True])
def test_least_squares_on_the_first_features_are_the_first_rows_only_without_correlation(correlated):
    torch.manual_seed(0)
    x = torch.linalg.qr(torch.randn(50, 4, dtype=torch.double)).Q
    if correlated:
        x[:, 2:] += x[:, :2]
    y = torch.randn(50, 3, dtype=torch.double)
    (whole, error), (narrow, narrow_error) = squares(x, y), squares(x[:, :2], y)
    assert torch.allclose(whole[:2], narrow) != correlated
    # One layer for both widths, that of the least sum of both errors.
    both = torch.cat([x, torch.cat([x[:, :2], torch.zeros(50, 2, dtype=torch.double)], 1)])
    _, shared_error = squares(both, torch.cat([y, y]))
    if correlated:
        assert shared_error > error + narrow_error + 1e-6
    else:
        torch.testing.assert_close(shared_error, error + narrow_error)


@pytest.mark.parametrize("augment", [False, True])
def test_it_reads_the_widths_alone_and_is_judged_on_test_images(augment, monkeypatch):
    calls = []

    def linearly(examples, val, test, classes, protocol, device, make=LinearProbe):
        calls.append((make, next(examples[1].epoch(9, torch.Generator())), val, test))
        return None, {}

    monkeypatch.setattr("experiments.probing.probe.judge_linearly", linearly)
    network, contrast = partial(VGG, plan=[8, "M", 16]), partial(QueueContrast, size=16)
    model = SlimCLR(network, (1, 8, 8), 10, widths=[1.0, 0.5], contrast=contrast)
    splits = Splits.of(Digits(augment=Augment(pad=1)))
    probe_network(model, splits, [1], Protocol(k=5, augment=augment), Findings())
    (alone, *every), (together, *nested) = calls
    assert (alone, together) == (LinearProbe, SharedProbe)
    for whole, part, count in zip(every, nested, (9, len(splits.val), len(splits.test)), strict=True):
        assert len(whole.kinds) == 4
        assert [*part.kinds] == [WIDE, NARROW]
        assert len(part) == len(whole) == count
    assert torch.equal(nested[2].kinds[NARROW], every[2].kinds[NARROW])


def every_metric_of_a_width_has_a_chart(folder):
    page = EventAccumulator(str(folder)).Reload()
    config = page.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    [category] = Layout.FromString(config).category
    tags = {chart.title: re.compile(*chart.multiline.tag) for chart in category.chart}
    drawn = {title: {name for name in page.Tags()["scalars"] if tag.fullmatch(name)} for title, tag in tags.items()}
    assert drawn["train/w…/gradient_ratio"] == {f"train/block1/w{width}/gradient_ratio" for width in (0.5, 0.25)}
    assert drawn["train/w…/pretext_top1"] == {f"train/block1/w{width}/pretext_top1" for width in (1, 0.5, 0.25)}
    assert drawn["train/loss"] == {"train/block1/loss"}
    assert len(drawn["probe_online/gap/top1"]) == 1


def test_probe_judges_every_width_alone_and_with_one_classifier(tmp_path):
    options = ("--model.network.plan=[8,M,16]", "--trainer.limit_train_batches=2", "--trainer.accelerator=cpu")
    folder = fit(tmp_path, "--model.start_epoch=1", *options, config=CONFIGS / "slimclr" / "digits.yaml")
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    every_metric_of_a_width_has_a_chart(folder)
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    main(["probe", f"--checkpoint={folder}", "--epochs=2", "--k=5", "--distilled=true"])
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before
    found = summary(folder)["metrics"]
    for kind in ("gap", "w0.5", "w0.25"):
        for judge in ("probe_lin2", "probe_shared2", "probe_distilled2", "knn_k5_t0.1"):
            assert 0 <= found[f"{judge}/block1/{kind}/top1"] <= 1
    assert len({found[f"probe_shared2/block1/{kind}/lr"] for kind in ("gap", "w0.5", "w0.25")}) == 1
    assert "probe_shared2/block1/embedding/top1" not in found
    assert "knn_k5_t0.1/block1/embedding_w0.25/top1" in found
    main(["probe", f"--checkpoint={folder}", "--epochs=1", "--k=5", "--shared=false"])
    assert not any(re.match("probe_(shared|distilled)1", name) for name in summary(folder)["metrics"])
