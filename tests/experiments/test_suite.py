"""``suite``."""

import json
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import CONFIGS, DIGITS, SMALL, fault

from experiments.callbacks.last_checkpoint import LastCheckpoint
from experiments.cli import main
from experiments.run.errors import RunError
from experiments.run.folder import PART_OF_SUITE
from experiments.suite import read_suite, suite


def test_a_grid_is_one_run_per_combination(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "runs:\n"
        "  - {config: a/digits.yaml, name: first, options: {trainer.max_epochs: 1}}\n"
        "  - {config: a/digits.yaml, grid: {model.num_blocks: [2, 4], seed_everything: [0, 1]}}\n"
    )
    planned = read_suite(path)
    assert [run.name for run in planned] == [
        "first",
        "a-digits-num_blocks2-seed_everything0",
        "a-digits-num_blocks2-seed_everything1",
        "a-digits-num_blocks4-seed_everything0",
        "a-digits-num_blocks4-seed_everything1",
    ]
    assert planned[0].options == ("--trainer.max_epochs=1",)
    assert planned[-1].options == ("--model.num_blocks=4", "--seed_everything=1")
    assert planned[0].config == (tmp_path / "a" / "digits.yaml").resolve()


def test_an_unknown_key_of_a_run_is_refused(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("runs:\n  - {config: a/digits.yaml, trainer.max_epochs: 2}\n")
    with pytest.raises(RunError, match=r"not trainer\.max_epochs: command-line options go under options"):
        read_suite(path)


@pytest.mark.parametrize("option", ["--name=x", "--ckpt_path=last"])
def test_options_of_one_run_are_refused_for_a_suite(option, tmp_path):
    with pytest.raises(RunError, match="belongs to one run"):
        suite(CONFIGS / "suites" / "demo.yaml", tmp_path, [option], lambda line: None)


def test_two_runs_of_one_name_are_refused(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("runs:\n  - config: a/digits.yaml\n  - config: a/digits.yaml\n")
    with pytest.raises(RunError, match="two runs named a-digits"):
        read_suite(path)


def run_here(command, check, env):
    """What a process of its own would do, without its imports."""
    assert command[:3] == [sys.executable, "-m", "experiments"]
    assert PART_OF_SUITE in env
    try:
        main(command[3:])
    except SystemExit as stop:
        return subprocess.CompletedProcess(command, stop.code)
    return subprocess.CompletedProcess(command, 0)


def test_suite_runs_resumes_skips_and_reports_in_spite_of_a_failure(copied, tmp_path, capfd, monkeypatch):
    def run(command, check, env, real=subprocess.run):
        return (run_here if "impossible" in command else real)(command, check=check, env=env)

    monkeypatch.setattr(subprocess, "run", run)
    study = tmp_path / "study.yaml"
    one = tmp_path / "runs" / "study" / "one"
    study.write_text(
        "runs:\n"
        f"  - {{config: {DIGITS}, name: one}}\n"
        f"  - {{config: {DIGITS}, name: impossible, options: {{model.num_blocks: 99}}}}\n"
    )
    shutil.copytree(copied, one)  # as if cut off after two of three epochs
    (one / "summary.json").unlink()
    command = ("suite", str(study), f"--runs={tmp_path / 'runs'}", *SMALL, "--trainer.max_epochs=3")
    with pytest.raises(SystemExit):
        main(list(command))
    output = capfd.readouterr()
    assert "cannot be cut into 99 blocks" in output.err
    assert "1 of 2 runs failed: impossible" in output.err
    assert json.loads((one / "summary.json").read_text())["global_step"] == 12
    assert (one.parent / "report.png").is_file()

    study.write_text(f"runs:\n  - {{config: {DIGITS}, name: one}}\n")
    main(list(command))
    assert "one: finished before" in capfd.readouterr().out


@pytest.fixture
def started(monkeypatch):
    """Names of the runs that a suite started, none of which does anything."""
    names = []

    def run(command, check, env):
        names.append(command[command.index("--name") + 1])
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    return names


@pytest.mark.parametrize(
    ("entry", "named", "said"),
    [
        ("grid: {model.optimizer.lrr: [0.1, 0.2]}", "digits-lrr0.1", "'lrr' is not accepted. Did you mean lr?"),
        ("name: two, options: {trainer.max_epochs: many}", "two", "trainer.max_epochs: Expected a <class 'int'>"),
        ("name: two, probe: quick.yaml", "two", "--epohcs"),
        ("name: two, probe: nowhere.yaml", "two", "nowhere.yaml"),
    ],
    ids=["option", "value", "probe", "file"],
)
def test_a_mistake_in_a_later_run_is_told_before_the_first_starts(entry, named, said, started, tmp_path, capsys):
    (tmp_path / "quick.yaml").write_text("epohcs: 2\n")
    study = tmp_path / "study.yaml"
    study.write_text(f"runs:\n  - {{config: {DIGITS}, name: one}}\n  - {{config: {DIGITS}, {entry}}}\n")
    message = fault(capsys, "suite", str(study), f"--runs={tmp_path / 'runs'}")
    assert "Nothing was started" in message
    assert f"{named}: " in message
    assert said.lstrip("-") in message
    assert not started
    assert not (tmp_path / "runs").exists()


def test_what_is_only_found_when_built_stops_no_other_run(started, tmp_path, capsys):
    (tmp_path / "quick.yaml").write_text("epochs: 2\n")
    study = tmp_path / "study.yaml"
    study.write_text(
        f"runs:\n  - {{config: {DIGITS}, name: impossible, options: {{model.num_blocks: 99}}, probe: quick.yaml}}\n"
        f"  - {{config: {DIGITS}, name: one}}\n"
    )
    assert "2 of 2 runs failed" in fault(capsys, "suite", str(study), f"--runs={tmp_path / 'runs'}")
    assert started == ["impossible", "one"]


def test_ctrl_c_stops_a_suite_and_says_how_it_goes_on(tmp_path, capsys, monkeypatch):
    def interrupted(command, check, env):
        monkeypatch.setenv(PART_OF_SUITE, env[PART_OF_SUITE])  # the run is told, and leaves the word to the suite
        trainer = SimpleNamespace(is_global_zero=True)
        LastCheckpoint(tmp_path / "one").on_exception(trainer, None, KeyboardInterrupt())
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["suite", str(CONFIGS / "suites" / "demo.yaml"), f"--runs={tmp_path / 'runs'}"])
    assert stop.value.code == 128 + signal.SIGINT
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == "Stopped. The same suite command goes on where it stopped."
    assert output.out.count("Stopped") == 1
    assert "[2/" not in output.out
    assert not output.err


def test_a_suite_probes_what_is_finished_and_not_probed_yet(copied, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(subprocess, "run", run_here)  # that runs are processes is tested above
    (tmp_path / "quick.yaml").write_text("epochs: 2\nk: 5\n")
    study = tmp_path / "study.yaml"
    study.write_text(f"runs:\n  - {{config: {DIGITS}, name: one, probe: quick.yaml}}\n")
    one = shutil.copytree(copied, tmp_path / "runs" / "study" / "one")  # as if cut off before the probe
    command = ["suite", str(study), f"--runs={tmp_path / 'runs'}"]
    main(command)
    assert "probe_lin2/block4/gap/top1" in json.loads((one / "summary.json").read_text())["metrics"]
    assert f"probe --config {tmp_path / 'quick.yaml'} --checkpoint {one}" in capfd.readouterr().out
    main(command)
    assert "one: finished before" in capfd.readouterr().out


def test_the_demo_shows_backprop_two_cuts_neuron_groups_layers_one_by_one_and_a_probed_run_without_labels():
    planned = read_suite(CONFIGS / "suites" / "demo.yaml")
    assert [run.name for run in planned] == [
        "backprop-digits",
        "decoupled_greedy-digits-num_blocks2",
        "decoupled_greedy-digits-num_blocks4",
        "neuron_groups-digits",
        "layerwise-digits",
        "blockwise_ssl-digits",
    ]
