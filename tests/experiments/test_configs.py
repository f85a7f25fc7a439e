"""Every YAML runs: one training, validation and test batch on tiny data in the published format."""

import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import yaml
from fake_data import WRITERS, write_data_set
from helpers import CONFIGS, EXPERIMENTS, PROBES, SUITES, head_of, name_of, summary

from experiments.cli import main
from experiments.probing.protocol import Protocol
from experiments.suite import Run, read_suite
from models.parts.difficulty import Difficulty


@pytest.mark.parametrize("config", EXPERIMENTS, ids=name_of)
def test_config_runs(config, tmp_path, monkeypatch):
    asked = yaml.safe_load(config.read_text())["data"]
    data = asked["class_path"].rpartition(".")[2]
    # Several processes would be started by pytest's own command line.
    options = ["--trainer.devices=1", "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--data.batch_size=2"]
    if data in WRITERS:
        options += [f"--data.root={write_data_set(data, tmp_path, monkeypatch)}", "--data.num_workers=0"]
    if "labels" in asked.get("init_args", {}):
        options += ["--data.labels=20"]
    if data == "ImageFolder" and "validation" in asked["init_args"]:
        options += ["--data.validation=0.2"]
    if data == "ImageNet":
        options += ["--data.image_size=64", "--data.validation=0.2"]
    if data == "Imagenet32":
        options += ["--data.validation=0.1"]
    if config.parent.name == "blockwise_ssl" and config.stem.startswith("imagenet"):
        options += ["--model.projector.init_args.widths=[16,16,16]"]  # up to 600 M parameters otherwise
    if config.parent.name == "channel_goodness" and data == "ImageFolder":
        options += ["--model.network.plan=[6,M,6,M,9,9]"]  # of 3 classes
    main(["fit", "--config", str(config), f"--runs={tmp_path / 'runs'}", *options])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("config", EXPERIMENTS, ids=name_of)
def test_config_states_command_source_time_and_figure(config):
    head = head_of(config)
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"local-learning fit --config {name_of(config)}" in head
    assert "Reproduces:" in head
    assert re.search(r"not run|reached: .*\d", head)


def options_named_in(config: Path) -> list[str]:
    """All options with values in the comments at a config's head, whatever the sentence."""
    lines = [line for line in head_of(config).splitlines() if not re.search("local-learning (probe|suite)", line)]
    options = re.findall(r"--(?!config)([\w.]+\+?) ('[^']+'|[^\s#]+)", "\n".join(lines))
    return [f"--{option}={value.strip(chr(39)).rstrip('.,;:)')}" for option, value in options]


@pytest.mark.parametrize("config", filter(options_named_in, EXPERIMENTS), ids=name_of)
def test_config_names_options_that_exist(config, builder):
    assert builder.parse(config, *options_named_in(config))


@pytest.mark.parametrize("config", PROBES, ids=name_of)
def test_probe_config_runs(config, copied):
    main(["probe", "--config", str(config), f"--checkpoint={copied}", "--epochs=1", "--blocks=[4]"])
    metrics = set(summary(copied)["metrics"])
    said = yaml.safe_load(config.read_text())
    how = Protocol(**{f.name: said[f.name] for f in fields(Protocol) if f.name in said} | {"epochs": 1})
    assert f"{how.linear}/block4/gap/top1" in metrics
    assert "knn_k200_t0.1/block4/gap/top1" in metrics


@pytest.mark.parametrize("config", PROBES, ids=name_of)
def test_probe_config_states_command_source_time_and_figure(config):
    head = config.read_text().partition("epochs:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert f"local-learning probe --config {name_of(config)} --checkpoint" in head
    assert "Reproduces:" in head
    assert re.search(r"not run|reached: .*\d", head)


@pytest.mark.parametrize("suite", SUITES, ids=name_of)
def test_suite_names_configs_that_exist(suite):
    runs = read_suite(suite)
    assert runs
    assert all(run.config.is_file() for run in runs)
    assert all(run.probe.is_file() for run in runs if run.probe)


@cache
def num_blocks_of(config: Path) -> int:
    return yaml.safe_load(config.read_text())["model"].get("init_args", {}).get("num_blocks", 1)


def what_is_run(run: Run) -> tuple:
    """Config and options of a run; of its difficulty what it comes to: every block's views, temperature, negatives."""
    options = {name: yaml.safe_load(value) for name, value in (option[2:].split("=", 1) for option in run.options)}
    num_blocks = options.get("model.num_blocks", num_blocks_of(run.config))
    levels = options.pop("data.views.levels", [1.0])
    given = [name for name in options if name.startswith("model.difficulty.")]
    knobs = {name.rpartition(".")[2]: options.pop(name) for name in given}
    difficulty = Difficulty(**knobs or {"mode": "constant_full"})
    course, full = difficulty.of_blocks(num_blocks), [1.0] * num_blocks
    tasks = (
        difficulty.view_strengths(num_blocks, levels),
        full if difficulty.easy_temperature is None else course,
        full if difficulty.easy_negatives is None else course,
    )
    return run.config, str(sorted(options.items())), *map(tuple, tasks)


@pytest.mark.parametrize("suite", SUITES, ids=name_of)
def test_no_two_runs_of_a_suite_are_the_same_in_all_but_name(suite):
    names = {}
    for run in read_suite(suite):
        assert names.setdefault(what_is_run(run), run.name) == run.name


def test_every_run_of_the_depth_study_has_its_batch_rate_and_cut():
    runs = read_suite(CONFIGS / "suites" / "difficulty_cifar10.yaml")
    assert all({"--data.batch_size=512", "--model.optimizer.lr=0.24"} <= set(run.options) for run in runs)
    assert {name for run in runs for name in run.options if "num_blocks" in name} == {
        f"--model.num_blocks={k}" for k in (1, 2, 4, 8)
    }
    [config] = {run.config for run in runs}
    model = yaml.safe_load(config.read_text())["model"]["init_args"]
    assert model["cut"] == {"by": "published"}
    assert model["optimizer"]["init_args"]["lr"] == pytest.approx(0.24 / 4)  # at batch 128
