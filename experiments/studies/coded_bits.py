"""Draw how many bits a number takes that processes send each other, epoch by epoch, and what accuracy that buys.

    python -m experiments.studies.coded_bits runs/coded_weights_fashion_mnist

Left: bits per number over the epochs of training, headers and tables included. Right: validation accuracy against what
one process has sent so far. One line per payload and hook, the mean over its seeds; a band from lowest to highest. The
runs need ``--trainer.strategy CompressedDDP``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.report.rows import Row, group
from experiments.report.runs import find_runs
from experiments.run.errors import RunError
from experiments.run.files import METRICS
from experiments.studies.picture import draw_runs

BITS, SENT, ACCURACY = "communication/epoch/bits_per_parameter", "communication/megabytes", "val/top1"

Curves = Mapping[str, Sequence[pd.DataFrame]]
"""What is sent, and how → the epochs of such runs, a table per seed."""


def read_epochs(run: Path) -> pd.DataFrame:
    """Epochs done, bits per number, megabytes sent so far and validation accuracy, in %, after every epoch of a run.

    Raises:
        RunError: the run has sent nothing.
    """
    rows = pd.read_csv(run / METRICS)
    if BITS not in rows:
        raise RunError(f"{run} logged nothing that was sent: train it with --trainer.strategy CompressedDDP.")
    epochs = rows.groupby("epoch")[[BITS, SENT, ACCURACY]].last().dropna().reset_index()
    return epochs.assign(epoch=epochs["epoch"] + 1, **{ACCURACY: 100 * epochs[ACCURACY]})


def read_curves(folders: Sequence[Path]) -> Curves:
    """All finished runs in or below some folders.

    Raises:
        RunError: there is none, or one has sent nothing.
    """
    return {_name(row): [read_epochs(run) for run in row.runs["folder"]] for row in group(find_runs(folders))}


def _name(row: Row) -> str:
    """``WeightDelta, Uncompressed``, or ``WeightDelta, FixedRef c = 1.0, Zlib``: payload, quantizer, coder."""
    known = dict(row.first["settings"])
    hook = "strategy.init_args.hook"
    quantizer, coder = f"{hook}.init_args.quantizer", f"{hook}.init_args.coder"
    parts = ["strategy.init_args.payload", *([quantizer, coder] if f"{coder}.class_path" in known else [hook])]
    names = [known[f"{part}.class_path"].rpartition(".")[2] for part in parts]
    if step := known.get(f"{quantizer}.init_args.c"):
        names[1] += f" c = {step}"
    return ", ".join(names)


@mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False})
def draw(curves: Curves, path: Path) -> None:
    """The picture, to a PNG file."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    bits, accuracy = figure.subplots(1, 2)
    for (name, runs), colour in zip(sorted(curves.items()), mpl.color_sequences["tab10"], strict=False):
        _line(bits, runs, "epoch", BITS, label=name, color=colour)
        _line(accuracy, runs, SENT, ACCURACY, label=name, color=colour)
    bits.set(xlabel="epochs of training", ylabel="bits per number", yscale="log")
    bits.xaxis.set_major_locator(MaxNLocator(integer=True))
    bits.yaxis.set_major_formatter("{x:g}")
    bits.set_yticks([1, 2, 4, 8, 16, 32], minor=False)
    bits.minorticks_off()
    accuracy.set(xlabel="MB sent by one process so far", ylabel="validation top-1, %", xscale="log")
    accuracy.xaxis.set_major_formatter("{x:g}")
    figure.legend(*bits.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _line(axes: Axes, runs: Sequence[pd.DataFrame], x: str, y: str, label: str, color: Any) -> None:
    """The mean over the seeds, and a band around it."""
    across, up = (pd.concat([run[column] for run in runs], axis=1) for column in (x, y))
    axes.plot(across.mean(axis=1), up.mean(axis=1), marker="o", markersize=3, label=label, color=color)
    axes.fill_between(across.mean(axis=1), up.min(axis=1), up.max(axis=1), color=color, alpha=0.2, linewidth=0)


def main(args: Sequence[str] | None = None) -> None:
    """Draw the runs that are asked for."""
    draw_runs(__doc__, "coded_bits.png", lambda folders, path: draw(read_curves(folders), path), args)


if __name__ == "__main__":
    main()
