"""``suite``."""

import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import CONFIGS, DIGITS, SMALL, fault, summary

from experiments.callbacks.last_checkpoint import LastCheckpoint
from experiments.cli import main
from experiments.run.folder import PART_OF_SUITE
from experiments.suite import read_suite


@pytest.fixture
def study(tmp_path):
    """Writes a suite file with the given runs; the command that runs it."""

    def write(*entries):
        (tmp_path / "study.yaml").write_text("\n  - ".join(["runs:", *entries]))
        return ("suite", str(tmp_path / "study.yaml"), f"--runs={tmp_path / 'runs'}")

    return write


def test_a_grid_is_one_run_per_combination(study, tmp_path):
    study(
        "{config: a/digits.yaml, name: first, options: {trainer.max_epochs: 1}}",
        "{config: a/digits.yaml, grid: {model.num_blocks: [2, 4], seed_everything: [0, 1]}}",
    )
    planned = read_suite(tmp_path / "study.yaml")
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


def test_an_option_may_name_what_the_grid_gives(study, tmp_path):
    options = "{trainer.max_epochs: $epochs_per_block, model.network.plan: [$3], data.root: $HOME}"
    study(f"{{config: digits.yaml, options: {options}, grid: {{model.epochs_per_block: [2, 5]}}}}")
    given = [run.options for run in read_suite(tmp_path / "study.yaml")]
    assert [line[0] for line in given] == ["--trainer.max_epochs=2", "--trainer.max_epochs=5"]
    assert all(line[1:3] == ("--model.network.plan=['$3']", "--data.root=$HOME") for line in given)


@pytest.mark.parametrize(
    ("entries", "option", "said"),
    [
        (["config: a.yaml\n    trainer.max_epochs: 2"], (), "not trainer.max_epochs: command-line options go under"),
        (["config: a/digits.yaml"] * 2, (), "two runs named a-digits: give one a name of its own"),
        (["config: a.yaml"], ("--name=x",), "--name=x belongs to one run"),
        (["config: a.yaml"], ("--ckpt_path=last",), "--ckpt_path=last belongs to one run"),
    ],
)
def test_what_no_suite_can_be_is_refused(entries, option, said, study, capsys):
    assert said in fault(capsys, *study(*entries), *option)


@pytest.fixture
def run_here(monkeypatch):
    """What a process of its own would do is done here, without its imports."""

    def run(command, check, env):
        assert command[:3] == [sys.executable, "-m", "experiments"]
        assert env.items() >= {**os.environ, PART_OF_SUITE: "1"}.items()
        try:
            main(command[3:])
        except SystemExit as stop:
            return subprocess.CompletedProcess(command, stop.code)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)


def test_suite_runs_resumes_probes_skips_and_reports_in_spite_of_a_failure(run_here, study, copied, tmp_path, capsys):
    (tmp_path / "quick.yaml").write_text("epochs: 2\nk: 5\n")
    one, probed = (tmp_path / "runs" / "study" / name for name in ("one", "probed"))
    impossible = f"{{config: {DIGITS}, name: impossible, options: {{model.num_blocks: 99}}, probe: quick.yaml}}"
    good = (f"{{config: {DIGITS}, name: one}}", f"{{config: {DIGITS}, name: probed, probe: quick.yaml}}")
    shutil.copytree(copied, one)  # as if cut off after two of three epochs
    (one / "summary.json").unlink()
    shutil.copytree(copied, probed)  # as if cut off before the probe
    options = (*SMALL, "--trainer.max_epochs=3")
    with pytest.raises(SystemExit):
        main([*study(impossible, *good), *options])
    output = capsys.readouterr()
    assert "cannot be cut into 99 blocks" in output.err  # found when it is built
    assert output.err.count("error: ") == 2  # there is nothing to probe then
    assert "1 of 3 runs failed: impossible" in output.err
    assert summary(one)["global_step"] == 12
    assert "probe_lin2/block4/gap/top1" in summary(probed)["metrics"]
    assert f"probe --config {tmp_path / 'quick.yaml'} --checkpoint {probed}" in output.out
    assert (one.parent / "report.png").is_file()

    main([*study(*good), *options])
    output = capsys.readouterr().out
    assert "one: finished before" in output
    assert "probed: finished before" in output


def test_a_grid_overrides_the_options_of_a_run_and_those_of_the_call_override_both(study, monkeypatch):
    commands = []
    done = SimpleNamespace(returncode=0)
    monkeypatch.setattr(subprocess, "run", lambda command, check, env: commands.append(command) or done)
    own, grid = "{trainer.max_epochs: 1, model.num_blocks: 2}", "{model.num_blocks: [4]}"
    main([*study(f"{{config: {DIGITS}, options: {own}, grid: {grid}}}"), "--trainer.max_epochs=3"])
    [command] = commands
    assert [part for part in command if "epochs" in part] == ["--trainer.max_epochs=1", "--trainer.max_epochs=3"]
    assert [part for part in command if "num_blocks=" in part] == ["--model.num_blocks=4"]


@pytest.fixture
def started(monkeypatch):
    """The commands that a suite started, none of which does anything."""
    names = []
    monkeypatch.setattr(subprocess, "run", lambda command, check, env: names.append(command))
    return names


@pytest.mark.parametrize(
    ("entry", "named", "said"),
    [
        ("grid: {model.optimizer.lrr: [0.1, 0.2]}", "digits-lrr0.1", "'lrr' is not accepted. Did you mean lr?"),
        ("name: two, options: {trainer.max_epochs: many}", "two", "trainer.max_epochs: many is no whole number"),
        ("name: two, probe: quick.yaml", "two", "--epohcs"),
        ("name: two, probe: nowhere.yaml", "two", "nowhere.yaml"),
    ],
    ids=["option", "value", "probe", "file"],
)
def test_a_mistake_in_a_later_run_is_told_before_the_first_starts(entry, named, said, started, study, tmp_path, capsys):
    (tmp_path / "quick.yaml").write_text("epohcs: 2\n")
    message = fault(capsys, *study(f"{{config: {DIGITS}, name: one}}", f"{{config: {DIGITS}, {entry}}}"))
    assert "Nothing was started" in message
    assert f"{named}: " in message
    assert said.lstrip("-") in message
    assert not started
    assert not (tmp_path / "runs").exists()


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
