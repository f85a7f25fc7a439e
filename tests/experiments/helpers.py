"""What the command-line tests share."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from experiments.cli import main

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
DIGITS = CONFIGS / "decoupled_greedy" / "digits.yaml"
SMALL = (
    "--model.network.plan=[8,8,M,16,16]",
    "--model.head.hidden=16",
    "--trainer.limit_train_batches=4",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
)


def fit(runs: Path, *options: str, name: str = "run", config: Path = DIGITS) -> Path:
    """Train a small network on digits for two epochs of four batches; the run folder."""
    command = ["fit", "--config", str(config), f"--runs={runs}", f"--name={name}", "--trainer.max_epochs=2"]
    main([*command, *(SMALL if config == DIGITS else ()), *options])
    return runs / name


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
    """Call ``work(rank, *args)`` in two processes at once; a forked one need not import everything again."""
    # Autograd's CUDA threads do not survive a fork.
    method = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"
    mp.start_processes(work, args, nprocs=2, start_method=method)
