"""Configs by name, in every folder, and networks by name."""

import configparser
from pathlib import Path

import pytest
from helpers import CONFIGS

from experiments.cli import main
from experiments.named_configs import config_file, with_config_files
from experiments.run.errors import RunError
from experiments.suite import read_suite

NAME = "decoupled_greedy/digits"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("ending", ["", ".yaml"])
def test_one_that_comes_along_is_found_unless_there_is_one_of_ones_own(ending, elsewhere):
    assert config_file(NAME + ending) == CONFIGS / f"{NAME}.yaml"
    (elsewhere / "decoupled_greedy").mkdir()
    (elsewhere / f"{NAME}.yaml").touch()
    assert config_file(NAME + ending).resolve() == elsewhere / f"{NAME}.yaml"


@pytest.mark.parametrize("ending", ["", ".yaml"])
def test_near_names_are_given(ending):
    with pytest.raises(RunError, match=r"Did you mean .*loco/digits"):
        config_file(f"digits{ending}")


def test_every_config_of_a_command_may_be_named():
    args = ["fit", "--config", NAME, "--name", "--config-x", f"--config={NAME}", "--configs=a", "--model.clip=1"]
    path = str(CONFIGS / f"{NAME}.yaml")
    expected = ["fit", "--config", path, "--name", "--config-x", f"--config={path}", "--configs=a", "--model.clip=1"]
    assert [*with_config_files(args)] == expected


def test_a_suite_and_its_configs_may_be_named(elsewhere, capsys):
    (elsewhere / "mine.yaml").write_text(f"runs: [{{config: {NAME}, probe: probe/digits}}, {{config: here.yaml}}]")
    one, other = read_suite(config_file("mine"))
    assert (one.config, one.probe) == (CONFIGS / f"{NAME}.yaml", CONFIGS / "probe" / "digits.yaml")
    assert other.config == elsewhere / "here.yaml"
    with pytest.raises(SystemExit):
        main(["suite", "suites/demmo"])
    assert "neither a file nor one that comes along has this name. Did you mean suites/demo" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["suite", "demo"])
    assert "Did you mean suites/demo?" in capsys.readouterr().err


def test_all_of_them_are_installed():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    installed = set(CONFIGS.parent.glob(setup["options.package_data"]["experiments"]))
    assert installed == set(CONFIGS.rglob("*.yaml"))


def test_of_a_network_that_torchvision_has_too_ours_is_meant(builder):
    import torchvision.ops

    assert torchvision.ops.MLP
    options = builder.parse(CONFIGS / f"{NAME}.yaml", "--model.network=MLP")
    assert options.model.init_args.network.class_path == "models.networks.MLP"
