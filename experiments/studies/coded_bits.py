"""Draw how many bits a number takes that processes send each other, epoch by epoch, and what accuracy that buys.

    python -m experiments.studies.coded_bits runs/coded_weights_fashion_mnist

Left: bits per number over the epochs of training, headers and tables included. Right: validation accuracy against what
one process has sent so far. One line per hook and payload, the mean over its seeds; a band from lowest to highest. The
runs need ``--trainer.strategy CompressedDDP``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report.rows import group
from experiments.report.runs import find_runs
from experiments.run.errors import RunError
from experiments.run.files import METRICS

BITS, SENT, ACCURACY = "communication/epoch/bits_per_parameter", "communication/megabytes", "val/top1"


def read_epochs(run: Path) -> pd.DataFrame:
    """Bits per number, megabytes sent so far and validation accuracy of a run after every epoch, from ``metrics.csv``.

    Raises:
        RunError: the run has sent nothing.
    """
    rows = pd.read_csv(run / METRICS)
    if BITS not in rows:
        raise RunError(f"{run} logged nothing that was sent: train it with --trainer.strategy CompressedDDP.")
    return rows.groupby("epoch")[[BITS, SENT, ACCURACY]].last().dropna()


def read_curves(folders: Sequence[Path]) -> dict[str, list[pd.DataFrame]]:
    """What tells runs apart besides their seed → their epochs, a table per seed.

    Raises:
        RunError: there is no finished run, or one has sent nothing.
    """
    lines = find_runs(folders)
    return {row.variant: [read_epochs(folder) for folder in row.runs["folder"]] for row in group(lines)}


@mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False})
def draw(curves: dict[str, list[pd.DataFrame]], path: Path) -> None:
    """The picture, to a PNG file; ``curves`` as :func:`read_curves` has them."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    bits, accuracy = figure.subplots(1, 2)
    for i, (name, seeds) in enumerate(curves.items()):
        colour = mpl.colormaps["tab10"](i % 10)
        _line(bits, name, colour, [run.index + 1 for run in seeds], [run[BITS] for run in seeds])
        _line(accuracy, name, colour, [run[SENT] for run in seeds], [100 * run[ACCURACY] for run in seeds])
    bits.set(xlabel="epochs of training", ylabel="bits per number", yscale="log")
    bits.xaxis.set_major_locator(MaxNLocator(integer=True))
    bits.set_yticks([1, 2, 4, 8, 16, 32], labels=["1", "2", "4", "8", "16", "32"])
    accuracy.set(xlabel="MB sent by one process so far", ylabel="validation top-1, %", xscale="log")
    figure.legend(*bits.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _line(axes: Axes, name: str, colour: tuple[float, ...], xs: Sequence[pd.Series], ys: Sequence[pd.Series]) -> None:
    """The mean over seeds, and a band around it."""
    x, y = (pd.concat([pd.Series(list(one)) for one in many], axis=1) for many in (xs, ys))
    axes.plot(x.mean(axis=1), y.mean(axis=1), label=name, color=colour, marker="o", markersize=3)
    axes.fill_between(x.mean(axis=1), y.min(axis=1), y.max(axis=1), color=colour, alpha=0.2, linewidth=0)


def main(args: Sequence[str] | None = None) -> None:
    """Draw the runs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders of them")
    parser.add_argument("--output", type=Path, help="PNG file (default: coded_bits.png in the first folder)")
    options = parser.parse_args(args)
    path = options.output or options.runs[0] / "coded_bits.png"
    try:
        draw(read_curves(options.runs), path)
    except RunError as fault:
        parser.exit(2, f"error: {fault}\n")
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
