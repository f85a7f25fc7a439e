"""``summary.json``."""

import json
from pathlib import Path

import pytest
from helpers import summary

from experiments.named_configs import probe_config
from experiments.run.summary import changing_callbacks, show_summary, write_json
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.equilibrium_propagation import EquilibriumPropagation


def test_callbacks_that_change_training_are_told_with_their_arguments(finished):
    drop = {"class_path": "experiments.callbacks.InfoBatch", "init_args": {"ratio": 0.25}}
    watch = {"class_path": "experiments.callbacks.TrainingAccuracy", "init_args": {}}
    assert changing_callbacks({"trainer": {"callbacks": [watch, drop]}}) == [drop]
    assert changing_callbacks({"trainer": {"callbacks": drop}}) == [drop]
    assert summary(finished)["callbacks"] == []


def test_what_json_does_not_know_is_written_as_text(tmp_path):
    write_json(tmp_path / "a.json", {"callbacks": [{"init_args": {"folder": Path("there")}}]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"callbacks": [{"init_args": {"folder": "there"}}]}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_what_judges_a_run_is_the_probe_of_its_method_or_of_one_that_it_is_made_of():
    assert probe_config(EquilibriumPropagation) == "probe/self_defined_target"
    assert probe_config(DecoupledGreedy) is None


@pytest.mark.parametrize("kind", ["gap", "outputs"])
def test_a_run_without_labels_is_shown_by_its_online_probe(kind, finished, capsys):
    without = {f"probe_online/block1/{kind}/top1": 0.4321}
    show_summary(finished, summary(finished) | {"metrics": without}, "probe/digits")
    said = capsys.readouterr().out
    assert "43.21" in said
    assert f"local-learning probe --config probe/digits --checkpoint {finished}" in said


@pytest.mark.parametrize(("part", "whose"), [("final", "final head"), ("sum", "sum of goodnesses"), ("", "last block")])
def test_it_is_said_what_the_model_predicts_by(part, whose, finished, capsys):
    found = summary(finished)
    show_summary(finished, found | {"metrics": found["metrics"] | ({f"test/{part}/top1": 0.5} if part else {})})
    assert f"model ({whose})" in capsys.readouterr().out
