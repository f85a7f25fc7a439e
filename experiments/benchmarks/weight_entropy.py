"""Draw the entropy of the weights over training: one panel per run, one line per weight tensor.

    python -m experiments.benchmarks.weight_entropy runs/A runs/B --output weight_entropy.png

The runs need the callback ``experiments.callbacks.Entropy``. A folder of runs stands for all runs in it.
"""

import argparse
import csv
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no screen is needed
import matplotlib.pyplot as plt
import yaml
from matplotlib.axes import Axes

from experiments.errors import RunError
from experiments.run_folder import CONFIG, METRICS

Curves = dict[str, dict[int, float]]
"""Weight tensor → epochs of training → figure."""


def read_curves(run: Path, figure: str = "weight_h8") -> Curves:
    """A figure of every weight tensor, before training (epoch 0) and after every epoch, from ``metrics.csv``.

    Raises:
        RunError: the run has no such figures.
    """
    curves: Curves = {}
    with (run / METRICS).open(newline="") as file:
        for row in csv.DictReader(file):
            epoch = int(row["epoch"]) + 1 if row["epoch"] else 0
            for name, value in row.items():
                if value and (found := re.fullmatch(rf"entropy/(.+)/{figure}", name)):
                    curves.setdefault(found[1], {})[epoch] = float(value)
    if not curves:
        raise RunError(f"{run} has no entropies: train with --trainer.callbacks+=experiments.callbacks.Entropy.")
    return curves


def draw(runs: list[Path], path: Path) -> None:
    """Entropy of the weights above, their RMS relative to its beginning below; one column per run.

    Args:
        runs: run folders.
        path: the PNG file.
    """
    figure, axes = plt.subplots(
        2, len(runs), figsize=(1 + 4.5 * len(runs), 7), sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    for column, run in zip(axes.T, runs, strict=True):
        column[0].set_title(_title(run))
        _lines(column[0], read_curves(run))
        rms = read_curves(run, "weight_rms")
        _lines(column[1], {name: {t: v / curve[0] for t, v in curve.items()} for name, curve in rms.items()})
        column[1].set_xlabel("epochs of training")
    axes[0, 0].set_ylabel("H8 of the weights, bits")
    axes[1, 0].set_ylabel("RMS of the weights, × initial")
    axes[0, -1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _lines(axes: Axes, curves: Curves) -> None:
    for name, curve in curves.items():
        style = {"color": "black", "linewidth": 2.5, "linestyle": "--"} if name == "total" else {"marker": "o"}
        axes.plot(list(curve), list(curve.values()), label=_layer(name), markersize=3, **style)
    axes.spines[["top", "right"]].set_visible(False)


def _layer(name: str) -> str:
    """``blocks.0.fc1.1.weight`` → ``block 1, fc1``; ``heads.0.weight`` → ``head 1``."""
    if name == "total":
        return "mean over all weights"
    kind, number, *units = name.removesuffix(".weight").split(".")
    return ", ".join([f"{kind.removesuffix('s')} {int(number) + 1}", *units[:1]])


def _title(run: Path) -> str:
    """The initialisation that the run asked for, or its name."""
    callbacks = yaml.safe_load((run / CONFIG).read_text())["trainer"]["callbacks"]
    drawn = [(one.get("init_args") or {}).get("distribution") for one in callbacks]
    return next((f"{distribution} initialisation" for distribution in drawn if distribution), run.name)


def main() -> None:
    """Draw the runs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders of them")
    parser.add_argument("--output", type=Path, help="PNG file (default: weight_entropy.png in the first folder)")
    options = parser.parse_args()
    found = [file.parent for runs in options.runs for file in sorted(runs.rglob(METRICS))]
    path = options.output or options.runs[0] / "weight_entropy.png"
    draw(found, path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
