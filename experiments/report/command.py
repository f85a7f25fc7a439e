"""The command line of ``report``: it needs no torch."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(args: Sequence[str]) -> None:
    """Run ``report`` by what follows it on the command line.

    Raises:
        RunError: there is no finished run, or one is damaged.
    """
    parser = argparse.ArgumentParser(
        "local-learning report", description="One table and one picture over finished runs."
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders of them")
    parser.add_argument(
        "--output", type=Path, help="folder for the files (default: RUNS if it is one folder, else runs/report)"
    )
    known = parser.parse_args(args)
    from experiments.report.report import report  # pandas takes a second: --help and mistakes are told before

    report(known.runs, known.output or (known.runs[0] if len(known.runs) == 1 else Path("runs/report")))
