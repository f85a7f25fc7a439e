"""What the command-line tests share."""

import json
import re
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.multiprocessing as mp
from jsonargparse import Namespace

from experiments.cli import main
from experiments.local_learning_cli import LocalLearningCLI
from experiments.named_configs import with_config_files

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
EXPERIMENTS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in ("suites", "probe", "devices"))
PROBES = sorted((CONFIGS / "probe").glob("*.yaml"))
DEVICES = sorted((CONFIGS / "devices").glob("*.yaml"))
SUITES = sorted((CONFIGS / "suites").glob("*.yaml"))
DIGITS = CONFIGS / "decoupled_greedy" / "digits.yaml"
SMALL = (
    "--model.network.plan=[8,8,M,16,16]",
    "--model.head.hidden=16",
    "--trainer.limit_train_batches=4",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
)

FORK = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"
"""How a test starts a process: a forked one need not import all again. Autograd's CUDA threads survive no fork."""

NO_VALUES = {name: lambda tensor, *_, **__: tensor for name in vars(torch.nn.init) if re.match(r"[a-z_]+[a-z]_$", name)}
"""Instead of what fills weights: on the meta device it only takes time."""


def name_of(config: Path) -> str:
    """Folder and name of a YAML."""
    return f"{config.parent.name}/{config.stem}"


def head_of(config: Path) -> str:
    """The comments at the head of a config or suite."""
    return "".join(takewhile(lambda line: line.startswith("#"), config.read_text().splitlines(keepends=True)))


def variants(config: Path) -> list[str]:
    """The config or suite as it is, then what stands behind ``…`` in the lines of commands at its head."""
    return ["", *re.findall(r"^#   … ([^#\n]+)", head_of(config), re.MULTILINE)]


def fit(runs: Path, *options: str, name: str = "run", config: Path = DIGITS) -> Path:
    """Train a small network on digits for two epochs of four batches; the run folder."""
    command = ["fit", "--config", str(config), f"--runs={runs}", f"--name={name}", "--trainer.max_epochs=2"]
    main([*command, *(SMALL if config == DIGITS else ()), *options])
    return runs / name


class Builder(LocalLearningCLI):
    """Builds what command lines of ``fit`` ask for, and trains nothing: weights are on the meta device.

    Of the last command line it holds ``options``, all that there are, ``model``, ``datamodule`` and ``trainer``, and
    ``optimization``: what the model gives Lightning to step.
    """

    def __init__(self) -> None:
        super().__init__(["fit", f"--config={DIGITS}"])  # the parser, which takes longer to build than to use

    def fit(self, **arguments: object) -> None:
        """Do nothing."""

    def parse(self, config: Path, *options: str) -> Namespace:
        """All options of a command; this takes half of the time of building."""
        return self._parser("fit").parse_args([f"--config={config}", *with_config_files(options)])

    def build(self, config: Path, *options: str) -> None:
        """Build what a command asks for."""
        self.options = self.parse(config, *options)
        self.config = Namespace(subcommand="fit", fit=self.options)
        with torch.device("meta"), patch.multiple(torch.nn.init, **NO_VALUES):
            self.instantiate_classes()
            self.after_instantiate_classes()
        self.model.trainer = self.trainer
        self.optimization = self.model.configure_optimizers()


def fault(capsys, *args: str) -> str:
    """Run a command that must end with exit code 2; its one line on stderr."""
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert len(lines[0]) < 600, lines[0]
    return lines[0]


def summary(folder: Path) -> dict:
    """A run's summary.json."""
    return json.loads((folder / "summary.json").read_text())


def in_two_processes(work: Callable[..., None], *args: object) -> None:
    """Call ``work(rank, *args)`` in two processes at once."""
    in_processes(2, work, *args)


def in_processes(count: int, work: Callable[..., None], *args: object) -> None:
    """Call ``work(rank, *args)`` in several processes at once."""
    mp.start_processes(work, args, nprocs=count, start_method=FORK)
