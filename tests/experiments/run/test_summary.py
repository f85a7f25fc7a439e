"""``summary.json``."""

import json
from pathlib import Path

from helpers import fit, summary

from experiments.run.summary import write_json


def test_callbacks_that_change_training_are_told_with_their_arguments(tmp_path, finished):
    drop, watch = "--trainer.callbacks+=InfoBatch", "--trainer.callbacks+=TrainingAccuracy"
    told = summary(fit(tmp_path, watch, drop, "--trainer.callbacks.ratio=0.25"))["callbacks"]
    assert told == [{"class_path": "experiments.callbacks.InfoBatch", "init_args": {"ratio": 0.25, "until": 0.875}}]
    assert summary(finished)["callbacks"] == []


def test_what_json_does_not_know_is_written_as_text(tmp_path):
    write_json(tmp_path / "a.json", {"callbacks": [{"init_args": {"folder": Path("there")}}]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"callbacks": [{"init_args": {"folder": "there"}}]}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
