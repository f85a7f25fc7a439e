"""Draw the entropy of the weights over training: one panel per run, one line per weight tensor, coloured by depth.

The head of a network of one block is grey; those of several blocks, which move much more than these, are left out.

    python -m experiments.studies.weight_entropy runs/A runs/B --output weight_entropy.png

The runs need the callback ``experiments.callbacks.Entropy``. A folder of runs stands for all runs in it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.run.errors import RunError
from experiments.run.files import CONFIG, METRICS
from experiments.studies.picture import draw_runs

Curves = dict[str, pd.Series]
"""Weight tensor → metric by epochs of training."""

_TOTAL = "total"
_LEGEND_ROWS = 32  # of the picture's height


def read_curves(run: Path, metric: str = "weight_h8") -> Curves:
    """A metric of every weight tensor, before training (epoch 0) and after every epoch, from ``metrics.csv``.

    Raises:
        RunError: the run has no such metrics.
    """
    rows = pd.read_csv(run / METRICS)
    rows.index = rows["epoch"].fillna(-1).astype(int) + 1
    logged = rows.filter(regex=rf"^entropy/.+/{metric}$")
    curves = {str(name).split("/")[1]: logged[name].dropna() for name in logged}
    if not curves:
        raise RunError(f"{run} logged no entropy: train it with --trainer.callbacks+=Entropy.")
    return {name: curves[name] for name in sorted(curves, key=_depth)}


def run_folders(folders: Sequence[Path]) -> list[Path]:
    """Of each folder the run that it is, or all in it; unfinished ones too.

    Raises:
        RunError: there is none.
    """
    found = []
    for folder in folders:
        runs = [file.parent for file in sorted(folder.rglob(METRICS)) if file.with_name(CONFIG).is_file()]
        if not runs:
            raise RunError(f"{folder} is no run folder, nor are there runs in it.")
        found += runs
    return found


def draw(runs: Sequence[Path], path: Path) -> None:
    """Entropy of the weights above, their RMS relative to its beginning below; one column per run.

    Args:
        runs: run folders.
        path: the PNG file.
    """
    figure = Figure(figsize=(3 + 4.5 * len(runs), 7), layout="constrained")
    axes = figure.subplots(2, len(runs), sharex=True, sharey="row", squeeze=False)
    entropy, rms = ([_drawn(read_curves(run, name)) for run in runs] for name in ("weight_h8", "weight_rms"))
    styles = _styles(sorted({name for curves in entropy for name in curves}, key=_depth))
    for (above, below), run, bits, sizes in zip(axes.T, runs, entropy, rms, strict=True):
        above.set_title(run.name, fontsize=9)
        _lines(above, bits, styles)
        _lines(below, {name: curve / curve[0] for name, curve in sizes.items()}, styles)
        below.set_xlabel("epochs of training")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("H8 of the weights, bits")
    axes[1, 0].set_ylabel("RMS of the weights, × initial")
    lines = {line.get_label(): line for one in axes[0] for line in one.lines}
    labels = list(dict.fromkeys(map(_layer, styles)))
    columns = -(-len(labels) // _LEGEND_ROWS)
    place: dict[str, Any] = {"loc": "outside right upper", "ncols": columns, "frameon": False, "fontsize": 8}
    figure.legend([lines[label] for label in labels], labels, **place)
    figure.savefig(path, dpi=150)


def _drawn(curves: Curves) -> Curves:
    """Without the heads of several blocks."""
    several = any(name.startswith("blocks.1.") for name in curves)
    return {name: curve for name, curve in curves.items() if not (several and name.startswith("heads."))}


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each tensor's line looks: dark to light from the first layer to the last, a head pale behind them."""
    styles: dict[str, dict[str, Any]] = {name: {"color": "0.75", "linewidth": 0.8, "zorder": 1} for name in names}
    layers = [name for name in names if name.startswith("blocks.")]
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(layers)))  # the end is too light on white
    for name, colour in zip(layers, colours, strict=True):
        styles[name] = {"color": colour, "marker": "o", "markersize": 2, "linewidth": 1.2}
    return styles | {_TOTAL: {"color": "black", "linewidth": 2, "linestyle": "--", "zorder": 3}}


def _lines(axes: Axes, curves: Curves, styles: dict[str, dict[str, Any]]) -> None:
    for name, curve in curves.items():
        axes.plot(curve, label=_layer(name), **styles[name])
    axes.spines[["top", "right"]].set_visible(False)


def _depth(name: str) -> list[Any]:
    """Sorts blocks, then heads, then the mean; ``conv10`` behind ``conv9``."""
    return [name == _TOTAL, *((not part.isdigit(), part.zfill(6)) for part in re.findall(r"\d+|\D+", name))]


def _layer(name: str) -> str:
    """``blocks.0.fc1.1.weight`` → ``block 1, fc1``; ``heads.0.weight`` → ``head``."""
    if name == _TOTAL:
        return "mean over all weights, heads too"
    kind, number, *units = name.removesuffix(".weight").split(".")
    return "head" if kind == "heads" else ", ".join([f"block {int(number) + 1}", *units[:1]])


def main(args: Sequence[str] | None = None) -> None:
    """Draw the runs that are asked for."""
    draw_runs(__doc__, "weight_entropy.png", lambda folders, path: draw(run_folders(folders), path), args)


if __name__ == "__main__":
    main()
