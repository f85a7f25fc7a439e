"""Direct association by hand, and linear classifiers that know a share of the labels."""

from functools import partial

import pytest
import torch
from helpers import fault, summary

from datamodules.digits import Digits
from experiments.cli import main
from experiments.probing.association import Association, associate
from experiments.probing.features import Features, Splits, draw
from experiments.probing.probe import probe_network
from experiments.probing.probe_results import Findings
from experiments.probing.protocol import Protocol
from experiments.run.errors import RunError
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.vgg import VGG

# Outputs 0, 1: class 0; output 2: class 1; output 3 is dead; class 2 has no output of its own.
OUTPUTS = torch.tensor([[0.8, 0.6, 0.1, 0.0], [0.6, 0.4, 0.0, 0.0], [0.1, 0.0, 0.9, 0.0], [0.5, 0.4, 0.3, 0.0]])
LABELS = torch.tensor([0, 0, 1, 2])


def test_outputs_stand_for_the_class_that_they_answer_most():
    assert Association(OUTPUTS, LABELS, 3).classes.tolist() == [0, 0, 1, -1]


def test_a_class_of_many_images_is_not_answered_more():
    outputs = torch.tensor([[0.4, 0.2]] * 3 + [[0.9, 0.1]])
    assert Association(outputs, torch.tensor([0, 0, 0, 1]), 2).classes.tolist() == [1, 0]


def test_means_over_the_outputs_of_a_class_decide_or_the_largest_output():
    rule = Association(OUTPUTS, LABELS, 3)
    asked = torch.tensor([[0.9, 0.1, 0.7, 0.0], [0.0, 0.0, 0.2, 9.0], [0.9, 0.8, 0.7, 0.0]])
    assert rule.by_mean(asked).tolist() == [1, 1, 0]  # 0.5 < 0.7; a dead output has no say
    assert rule.by_largest(asked).tolist() == [0, 1, 0]


def test_a_class_without_outputs_is_never_predicted():
    rule = Association(OUTPUTS, LABELS, 3)
    assert 2 not in rule.by_mean(-torch.rand(20, 4) / 2)
    assert set(rule.by_largest(torch.rand(20, 4)).tolist()) <= {0, 1}


def test_a_class_without_a_labelled_image_is_told():
    with pytest.raises(RunError, match="No labelled image is of class 2"):
        Association(OUTPUTS[:3], LABELS[:3], 3)


def test_both_are_judged_on_test_images():
    known, test = Features({"z": OUTPUTS}, LABELS), Features({"z": OUTPUTS[:3]}, torch.tensor([0, 0, 2]))
    assert associate(known, test, 3) == pytest.approx({"z/top1": 2 / 3, "z/top1_by_largest": 2 / 3})


def features(count=200):
    return Features({"z": torch.arange(count)[:, None].float()}, torch.arange(count) % 4)


def test_a_share_of_the_labels_is_drawn_class_by_class():
    train, val, both = features().labelled(0.2, held_out=40, seed=0)
    assert both.labels.bincount().tolist() == [10] * 4
    assert torch.equal(torch.cat([train.kinds["z"], val.kinds["z"]]), both.kinds["z"])
    assert train.kinds["z"].max() < 160 <= val.kinds["z"].min()
    assert not torch.equal(both.kinds["z"], features().labelled(0.2, 40, seed=1)[2].kinds["z"])
    for seed in range(5):
        train, val, both = features().labelled(0.9, 40, seed)
        assert train.kinds["z"].max() < 160 <= val.kinds["z"].min()
        if 160 in both.kinds["z"]:
            break
    assert 160 in val.kinds["z"]  # the first one that is held out


def test_of_all_labels_none_is_drawn():
    train, val, both = features().labelled(1.0, held_out=40, seed=0)
    assert (len(train), len(val), len(both)) == (160, 40, 200)


@pytest.mark.parametrize(("share", "held_out"), [(0.01, 40), (0.02, 1)])
def test_too_few_labels_are_told(share, held_out):
    with pytest.raises(RunError, match="choose larger --label_shares"):
        features().labelled(share, held_out, seed=0)


def test_the_seed_says_which_labels_and_which_corrupted_images_there_are(monkeypatch):
    drawn, associated, corrupted, labelled = [], [], [], Features.labelled
    monkeypatch.setattr(Features, "labelled", lambda self, *how: drawn.append(how) or labelled(self, *how))
    place = "experiments.probing.probe."
    monkeypatch.setattr(place + "judge_linearly", lambda *_: (None, {}))
    monkeypatch.setattr(place + "associate", lambda known, *_: associated.append(len(known)) or {})
    monkeypatch.setattr(place + "corrupted_accuracy", lambda _, some, *more: corrupted.append(some.labels) or {})
    model, splits = DecoupledGreedy(partial(VGG, plan=(8, "M", 8)), (1, 8, 8), 10, 2), Splits.of(Digits())
    protocol = Protocol(k=5, label_shares=[0.5], association=True, corrupted_images=20, seed=7)
    probe_network(model, splits, [2], protocol, Findings())
    assert drawn == [(0.5, 144, 7)] * 2
    assert associated == [718]  # those for validation, too
    assert torch.equal(corrupted[0], draw(splits.test, 20, 7).labels)
    assert not torch.equal(corrupted[0], draw(splits.test, 20, 0).labels)


def test_probe_judges_few_labels_and_associations(copied, capsys):
    run = copied
    few = ("--blocks=[4]", "--epochs=2", "--learning_rates=[0.1]", "--label_shares=[1,0.1]", "--association=true")
    main(["probe", f"--checkpoint={run}", *few])
    found = summary(run)["metrics"]
    for name in ("probe_lin2", "association"):
        assert 0.1 < found[f"{name}_labels0.1/block4/gap/top1"] <= 1
        assert 0.1 < found[f"{name}/block4/gap/top1"] <= 1
    printed = capsys.readouterr().out
    for heading in ("linear", "labels", "10 %", "association", "largest"):
        assert heading in printed
    assert "above 0" in fault(capsys, "probe", f"--checkpoint={run}", "--label_shares=[0]")
    assert "leave --label_shares out" in fault(
        capsys, "probe", f"--checkpoint={run}", "--label_shares=[.1]", "--augment=true"
    )
