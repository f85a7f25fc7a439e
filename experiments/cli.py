"""The command line: which command it is, and how its faults and interruptions end."""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from experiments.report.command import main as report
from experiments.run.folder import process_rank
from experiments.suite import main as suite
from losses.errors import UsageError


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; faults of use end with one sentence on stderr and exit code 2.

    Args:
        args: command and options; those of the process by default.
    """
    args = list(sys.argv[1:] if args is None else args) or ["--help"]
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a method of one's own is found as with python -m
    try:
        if args and args[0] in COMMANDS:
            COMMANDS[args[0]](args[1:])
        else:
            _command_of_a_model(args)
    except KeyboardInterrupt as stop:  # of a training it was told already
        raise SystemExit(128 + signal.SIGINT) from stop
    except UsageError as fault:
        who = f"process {rank}: " if (rank := process_rank()) else ""
        print(f"{who}error: {fault}", file=sys.stderr)
        raise SystemExit(2) from fault


def _command_of_a_model(args: Sequence[str]) -> None:
    # Imported here: torch and Lightning take seconds, which suite and report can do without.
    from experiments import model_commands

    model_commands.main(args)


def _fault_of(args: Sequence[str]) -> str | None:
    from experiments import model_commands

    return model_commands.fault_of(args)


COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "suite": partial(suite, fault_of=_fault_of),
    "report": report,
}
"""Commands that take no model."""
