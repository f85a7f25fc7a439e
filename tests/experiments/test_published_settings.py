"""Configs, suites and probes that reproduce something have the published settings: see ``published.py``.

The commands at a config's head with other options are built, whether they reproduce something or not.
"""

import re
import shlex

import pytest
from helpers import EXPERIMENTS, PROBES, SUITES, head_of, name_of, variants
from published import TABLE, deviations, rows_of, settings

from experiments.cli import main
from experiments.suite import read_suite
from models.methods.semi_supervised_target import SemiSupervisedTarget

COMMANDS = {f"{name_of(c)} {options}".strip(): (c, options) for c in EXPERIMENTS for options in variants(c)}
RUNS = {f"{name_of(suite)}/{run.name}": suite for suite in SUITES for run in read_suite(suite)}
REPRODUCING = [name for name, (config, _) in COMMANDS.items() if "Reproduces: nothing" not in head_of(config)]
REPRODUCING += [name for name, suite in RUNS.items() if re.search("Reproduces: (?!nothing)", head_of(suite))]


@pytest.mark.parametrize("command", REPRODUCING, ids=str)
def test_what_reproduces_has_published_settings(command):
    known = {setting.replace("at step", "in epoch") for row in rows_of(command) for setting in row["settings"]}
    assert known >= {"epochs", "batch", "optimizer", "rate in epoch"}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["source"])
def test_published_settings_are_those_of_something(row):
    assert any(re.fullmatch(row["of"], name) for name in (*COMMANDS, *RUNS, *map(name_of, PROBES)))


@pytest.mark.parametrize("command", [name for name, (_, options) in COMMANDS.items() if options or rows_of(name)])
def test_commands_are_built_and_with_published_settings(command, builder):
    config, options = COMMANDS[command]
    builder.build(config, *shlex.split(options))
    kinds = 3 if isinstance(builder.model, SemiSupervisedTarget) else 1  # of batches, each with optimizers of its own
    assert len(builder.optimization[0]) == kinds * builder.model.schedule.parts
    assert not (rows_of(command) and deviations(command, settings(builder)))


@pytest.mark.parametrize(
    "probe", [probe for probe in PROBES if "Reproduces: nothing" not in head_of(probe)], ids=name_of
)
def test_published_protocols_are_what_is_probed_by(probe, finished, monkeypatch):
    asked = []
    monkeypatch.setattr("experiments.trainer.probe_run", lambda *arguments: asked.extend(arguments))
    main(["probe", f"--config={probe}", f"--checkpoint={finished}"])
    assert rows_of(name_of(probe))
    assert not deviations(name_of(probe), vars(asked[4]))
