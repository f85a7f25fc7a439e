"""The command line of studies that draw runs."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.run.errors import RunError


def draw_runs(
    description: str | None, name: str, draw: Callable[[Sequence[Path], Path], None], args: Sequence[str] | None
) -> None:
    """Draw the runs that are asked for; a fault ends with one sentence and exit code 2.

    Args:
        description: what the picture shows, for the help.
        name: of the picture in the first folder that is given, unless ``--output`` says another.
        draw: draws run folders, or folders of them, into a PNG file.
        args: of the command line; those of the process by default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders of them")
    parser.add_argument("--output", type=Path, help=f"PNG file (default: {name} in the first folder)")
    options = parser.parse_args(args)
    path = options.output or options.runs[0] / name
    try:
        draw(options.runs, path)
    except RunError as fault:
        parser.exit(2, f"error: {fault}\n")
    print(f"Picture: {path}")
