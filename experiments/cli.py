"""The command line: which command it is, and how its faults and interruptions end."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.run.folder import process_rank
from losses.errors import UsageError

# Imports within functions: torch and Lightning take seconds, and suite and report can do without.


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; faults of use end with one sentence on stderr and exit code 2.

    Args:
        args: command and options; those of the process by default.
    """
    args = list(sys.argv[1:] if args is None else args)
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
    from experiments import model_commands

    model_commands.main(args)


def _suite(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m experiments suite",
        description="Run a list or grid of configs, each in a process of its own, then report. Finished runs are "
        "skipped, cut-off ones resumed. Other options (--trainer.max_epochs 5) go to every run.",
        epilog="The YAML: runs: [{config: FILE, name: NAME, options: {OPTION: VALUE}, grid: {OPTION: [VALUE, ...]}, "
        "probe: FILE}]",
    )
    parser.add_argument("suite", type=Path, help="the suite's YAML")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all run folders")
    known, extra = parser.parse_known_args(args)
    from experiments.suite import suite

    try:
        suite(known.suite, known.runs, extra, _fault_of)
    except KeyboardInterrupt:
        print("\nStopped. The same suite command goes on where it stopped.")
        raise


def _fault_of(args: Sequence[str]) -> str | None:
    from experiments import model_commands

    return model_commands.fault_of(args)


def _report(args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m experiments report", description="One table and one picture over finished runs."
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders of them")
    parser.add_argument(
        "--output", type=Path, help="folder for the files (default: RUNS if it is one folder, else runs/report)"
    )
    known = parser.parse_args(args)
    from experiments.report.report import report

    report(known.runs, known.output or (known.runs[0] if len(known.runs) == 1 else Path("runs/report")))


COMMANDS = {"suite": _suite, "report": _report}
"""Commands that take no model."""
