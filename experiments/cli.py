"""The command line: which command it is, and how its faults and interruptions end."""

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn, TextIO

from experiments.measure.allocator import keep_freed_memory
from experiments.named_configs import with_config_files
from experiments.report.command import main as report
from experiments.run.errors import RunError, told
from experiments.run.files import CONFIG
from experiments.run.folder import IN_THE_RUN, RunFolder, process_rank
from experiments.run.limited_yaml import read_yaml
from experiments.suite import main as suite
from losses.errors import UsageError

_FLAGS = ("--json", "--simulate")
"""Options of a model's commands that may stand alone, without ``true``."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; faults of use end with one sentence on stderr and exit code 2.

    Args:
        args: command and options; those of the process by default.
    """
    args = list(sys.argv[1:] if args is None else args) or ["--help"]
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # faults of exchanges come as exceptions too
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a method of one's own is found as with python -m
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()  # closed ones are None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no "…" shall not stop a training
    try:
        _run(args)
    except KeyboardInterrupt as stop:  # of a training it was told already
        raise SystemExit(128 + signal.SIGINT) from stop
    except UsageError as fault:
        _refuse(str(fault), fault)
    except OSError as fault:
        _forget_lost_output()
        if (why := told(fault)) is None:
            raise
        _refuse(why, fault)


def _run(args: Sequence[str]) -> None:
    try:
        if args[0] in WITHOUT_A_MODEL:
            WITHOUT_A_MODEL[args[0]](args[1:])
        else:
            _with_a_model(args)
    finally:
        sys.stdout.flush()  # later nobody could tell that there is no room for it


def _refuse(why: str, fault: Exception) -> NoReturn:
    who = f"process {rank}: " if (rank := process_rank()) else ""
    print(f"{who}error: {why}", file=sys.stderr)
    raise SystemExit(2) from fault


def _forget_lost_output() -> None:
    """Let go what nobody reads any more, or what finds no room: Python would complain of it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with _nowhere() as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _with_a_model(args: Sequence[str]) -> None:
    """Run a command of a model on data; torch and Lightning take seconds, which the other commands do without."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from experiments.local_learning_cli import COMMANDS, OF_A_RUN, LocalLearningCLI
    from experiments.parser import did_you_mean
    from experiments.refusals import FAULTS, require_two_images

    keep_freed_memory()
    _silence_advice()
    threading.excepthook = _tell_unless_handed_on
    command = args[0]
    if command.isidentifier() and command not in COMMANDS:
        known = [*COMMANDS, *WITHOUT_A_MODEL]
        raise UsageError(f"there is no command {command!r}.{did_you_mean(command, known)} Known: {', '.join(known)}.")
    try:
        args = [*with_config_files(args)]
        if command in OF_A_RUN:
            args = _with_config_of_run(args)
        elif command in COMMANDS:
            args = _with_config_of_checkpoint(args)
        LocalLearningCLI([f"{arg}=true" if arg in _FLAGS else arg for arg in args])
    except SIGTERMException as stop:
        raise SystemExit(128 + signal.SIGTERM) from stop
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # after which Lightning exits with 1, as after a fault
            raise stop.__context__ from stop
        raise
    except FAULTS as fault:
        raise UsageError(str(fault)) from fault
    except ValueError as fault:
        require_two_images(fault)
        raise


def _tell_unless_handed_on(ended: threading.ExceptHookArgs) -> None:
    """What ended a thread; not what a disk refused TensorBoard's, which raises that at the next call."""
    if not isinstance(ended.exc_value, OSError):
        threading.__excepthook__(ended)


def _fault_of(args: Sequence[str]) -> str | None:
    """What is wrong with a command line, None if nothing is: it is parsed, and nothing is built or run."""
    from experiments.local_learning_cli import LocalLearningCLI

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            LocalLearningCLI([*args, "--print_config"])  # which ends the parsing with an exit
    except SystemExit as stop:
        return said.getvalue().strip().removeprefix("error: ") if stop.code else None
    return None


WITHOUT_A_MODEL: Mapping[str, Callable[[Sequence[str]], None]] = {
    "suite": partial(suite, fault_of=_fault_of),
    "report": report,
}


_ONE_PROCESS = ("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")


def _with_config_of_run(args: Sequence[str]) -> Sequence[str]:
    """``probe --checkpoint RUN …``, and ``observe``: the run's own config comes first, all else overrides it.

    In one process, in however many the run was trained, unless others are asked for.

    Raises:
        RunError: no run is given, or there is none, or a configuration of a training is given for the protocol.
    """
    known, others = _asked(args, "--checkpoint")
    if known.checkpoint is None:
        if any(arg in ("-h", "--help") or arg.endswith(".help") for arg in others):
            return args
        raise RunError(f"{args[0]} needs a finished run: give --checkpoint RUN, its folder.")
    for path in map(Path, filter(None, known.config)):
        if path.is_file() and "model" in (read_yaml(path) or ()):
            raise RunError(f"{path} trains a model; how to {args[0]} a run is said as in probe/digits.")
    config = RunFolder.around(Path(known.checkpoint)).path / CONFIG
    return [args[0], f"--config={config}", *_ONE_PROCESS, *args[1:]]


def _with_config_of_checkpoint(args: Sequence[str]) -> Sequence[str]:
    """``predict --ckpt_path RUN``, or ``fit``: without any other, the run's own config is meant.

    Raises:
        RunError: nothing at all is given.
    """
    known, _ = _asked(args, "--ckpt_path", "--model", "--data")
    if len(args) == 1:
        raise RunError(f"{args[0]} needs an experiment: give --config, such as decoupled_greedy/digits.")
    if known.ckpt_path in (None, *IN_THE_RUN) or known.config or known.model or known.data:
        return args
    return [args[0], "--config", str(RunFolder.around(Path(known.ckpt_path)).path / CONFIG), *args[1:]]


def _asked(args: Sequence[str], *options: str) -> tuple[argparse.Namespace, list[str]]:
    """What a command line gives these options, of ``--config`` all, and the rest of it.

    What is wrong with it is not told here: an option without a value has None.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in options:
        parser.add_argument(option, nargs="?")
    parser.add_argument("-c", "--config", nargs="?", action="append", default=[])
    return parser.parse_known_args(args)


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
        ".*in eval mode at the start of training.*",  # blocks that are kept as they are
        ".*exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)
