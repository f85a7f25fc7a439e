"""Linear classifiers on standardised features, beside judges that read them as they are."""

from functools import partial

import pytest
import torch
from helpers import summary
from sklearn.preprocessing import StandardScaler

from datamodules.digits import Digits
from experiments.cli import main
from experiments.probing.features import Features, Splits, Standardisation, block_reader
from experiments.probing.probe import probe_network
from experiments.probing.probe_results import Findings, table_of
from experiments.probing.protocol import Protocol
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.vgg import VGG

CPU = torch.device("cpu")


def test_features_are_standardised_as_scikit_learn_does_it_and_constant_ones_become_zero():
    values = torch.rand(50, 4) * torch.tensor([1.0, 30.0, 0.01, 0.0]) + torch.tensor([5.0, -2.0, 0.0, 0.1])
    values[::2, 3] = torch.nextafter(values[::2, 3], torch.tensor(1.0))  # constant but for rounding
    known = Features({"block1/gap": values.clone()}, torch.arange(50))
    scale, others = Standardisation.of(known), torch.rand(7, 4)
    right = StandardScaler().fit(values.numpy())
    scale.apply(known)
    torch.testing.assert_close(known.kinds["block1/gap"][:, :3], torch.tensor(right.transform(values)).float()[:, :3])
    assert not known.kinds["block1/gap"][:, 3].abs().gt(1e-5).any()
    found = scale.after(lambda images: {"block1/gap": images})(others)["block1/gap"]
    torch.testing.assert_close(found[:, :3], torch.tensor(right.transform(others)).float()[:, :3], atol=1e-4, rtol=1e-4)


def judged(monkeypatch, standardise, augment=False):
    """What the linear classifiers, the votes and the associations are given."""
    given = {}

    def linearly(examples, val, test, *_):
        given.update(train=examples[0], known=examples[1], val=val, test=test)
        return None, {}

    def associate(known, test, classes):
        given["associated"] = [some.kinds["block2/gap"].clone() for some in (known, test)]
        return {}

    monkeypatch.setattr("experiments.probing.probe.judge_linearly", linearly)
    monkeypatch.setattr("experiments.probing.probe.associate", associate)
    torch.manual_seed(0)
    model, splits = DecoupledGreedy(partial(VGG, plan=(8, "M", 8)), (1, 8, 8), 10, 2), Splits.of(Digits())
    findings, protocol = Findings(), Protocol(k=5, association=True, standardise=standardise, augment=augment)
    probe_network(model, splits, [2], protocol, findings)
    return given, findings, splits, model


def test_the_training_images_alone_say_what_is_standard_and_only_linear_classifiers_see_it(monkeypatch):
    plain, before, *_ = judged(monkeypatch, False)
    given, after, splits, model = judged(monkeypatch, True)
    scale = Standardisation.of(plain["train"])
    for part in ("train", "known", "val", "test"):
        right = scale.after(lambda _, part=part: plain[part].kinds)(None)
        assert torch.equal(given[part].kinds["block2/gap"], right["block2/gap"]), part
    train = given["train"].kinds["block2/gap"]
    assert len(train) == len(splits.train)
    torch.testing.assert_close(train.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(0, correction=0), torch.ones(8))
    for one, other in zip(plain["associated"], given["associated"], strict=True):
        assert torch.equal(one, other)
    assert before.metrics == after.metrics  # votes and ranks
    augmented = judged(monkeypatch, True, augment=True)[0]["known"]
    image = splits.test.__getitems__(torch.arange(3))
    ready = splits.data.evaluation_batch(image).images
    found = augmented.compute(ready)["block2/gap"]
    torch.testing.assert_close(found, given["test"].kinds["block2/gap"][:3])
    assert not torch.equal(found, block_reader(model, [2])(ready)["block2/gap"])


def test_the_metric_says_so(copied, capsys):
    main(["probe", f"--checkpoint={copied}", "--epochs=2", "--k=5", "--blocks=[4]", "--standardise=true"])
    found = summary(copied)["metrics"]
    assert 0.1 < found["probe_lin2_standardised/block4/gap/top1"] <= 1
    assert "probe_lin2/block4/gap/top1" not in found
    assert f"{100 * found['probe_lin2_standardised/block4/gap/top1']:.2f}" in capsys.readouterr().out
    assert Protocol(epochs=7, augment=True, standardise=True).linear == "probe_lin7_augmented_standardised"
    assert Protocol().linear == "probe_lin100"


@pytest.mark.parametrize("name", ["probe_lin9_standardised", "probe_lin9_adam_standardised_labels0.5"])
def test_the_table_knows_them(name):
    headings, [row] = table_of(Findings({f"{name}/block2/all_but_first/top1": 0.5}))
    assert (headings[-1], row[0], row[1], row[-1]) == ("linear", "2", "all_but_first", "50.00")
