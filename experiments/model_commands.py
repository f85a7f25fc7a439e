"""How a command of a model on data is run: what is added to its options, and how its faults end."""

import argparse
import contextlib
import io
import logging
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path

import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from experiments.local_learning_cli import COMMANDS, FAULTS, OF_A_RUN, LocalLearningCLI
from experiments.measure.allocator import keep_freed_memory
from experiments.parser import did_you_mean
from experiments.run.errors import RunError
from experiments.run.files import CONFIG
from experiments.run.folder import RunFolder
from losses.errors import UsageError


def main(args: Sequence[str]) -> None:
    """Run a command.

    Raises:
        UsageError: it was misused.
    """
    keep_freed_memory()
    _silence_advice()
    command = args[0] if args else ""
    if command.isidentifier() and command not in COMMANDS:
        known = [*COMMANDS, "suite", "report"]
        raise UsageError(f"there is no command {command!r}.{did_you_mean(command, known)} Known: {', '.join(known)}.")
    try:
        args = _with_config_of_run(args) if command in OF_A_RUN else args
        LocalLearningCLI(["--json=true" if arg == "--json" else arg for arg in args])
    except SIGTERMException as stop:
        raise SystemExit(128 + signal.SIGTERM) from stop
    except Exception as error:
        if fault := _fault_behind(error):
            raise UsageError(str(fault)) from error
        raise


def _fault_behind(error: BaseException | None) -> BaseException | None:
    """The fault of use that an error is, or was raised from."""
    while error is not None and not isinstance(error, FAULTS):
        error = error.__cause__
    return error


def fault_of(args: Sequence[str]) -> str | None:
    """What is wrong with a command line, None if nothing is: it is parsed, and nothing is built or run."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            LocalLearningCLI([*args, "--print_config"])  # which ends the parsing with an exit
    except SystemExit as stop:
        return said.getvalue().strip().removeprefix("error: ") if stop.code else None
    return None


def _with_config_of_run(args: Sequence[str]) -> Sequence[str]:
    """``probe --checkpoint RUN …``, and ``observe``: the run's own config comes first, all else overrides it.

    Raises:
        RunError: no run is given, or there is none, or a configuration of a training is given for the protocol.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--config", type=Path, action="append", default=[])
    known, others = parser.parse_known_args(args)
    if known.checkpoint is None:
        if any(arg in ("-h", "--help") or arg.endswith(".help") for arg in others):
            return args
        raise RunError(f"{args[0]} needs a finished run: give --checkpoint RUN, its folder.")
    for path in known.config:
        if path.is_file() and "model" in (yaml.safe_load(path.read_text()) or {}):
            raise RunError(
                f"{path} trains a model; how to {args[0]} a run is said as in experiments/configs/probe/digits.yaml."
            )
    return [args[0], "--config", str(RunFolder.around(known.checkpoint).path / CONFIG), *args[1:]]


def _silence_advice() -> None:
    """Silence advice that does not apply here: data in memory needs no workers, batches no logger."""
    for logger in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    for message in (
        ".*sync_dist=True.*",  # torchmetrics has added up the processes already
        ".*treespec.*is deprecated.*",
        ".*no `val_dataloader`.*",
        ".*callbacks used to create the checkpoint.*",
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)
