"""``summary.json``."""

import json
from pathlib import Path

import pytest
from helpers import summary

from experiments.run.summary import changing_callbacks, show_summary, write_json


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


@pytest.mark.parametrize(("part", "whose"), [("final", "final head"), ("sum", "sum of goodnesses"), ("", "last block")])
def test_it_is_said_what_the_model_predicts_by(part, whose, finished, capsys):
    found = summary(finished)
    show_summary(finished, found | {"metrics": found["metrics"] | ({f"test/{part}/top1": 0.5} if part else {})})
    assert f"model ({whose})" in capsys.readouterr().out
