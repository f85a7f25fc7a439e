"""How far below backpropagation finished runs end, against what their training costs; drawn and printed.

    python -m experiments.studies.gap_against_flops runs/closing_the_gap_cifar10_folder

A row is the runs of one name in a suite, its seeds together. Cost is the FLOPs of a step times the images that were
seen, over those of the row ``backprop``. The gap is in points of test top-1, with the 95 % interval of a difference of
means (Welch) where both rows have several seeds, else of two proportions of the test split. The line to beat is
backpropagation, given the same FLOPs.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from experiments.report.runs import find_runs
from experiments.run import tables
from experiments.run.errors import RunError
from experiments.studies.picture import draw_runs

BASE, TEST_IMAGES, METRIC = "backprop", 10_000, "test/top1"


@dataclass(frozen=True)
class Point:
    """One row: its cost over backpropagation's, and its gap to it.

    Attributes:
        name: of the row.
        level: of locality.
        cost: FLOPs of the training, over those of the base.
        accuracy: mean test top-1, %.
        gap: points below the base; negative: above it.
        half_width: of the gap's 95 % interval, points.
        seeds: how many runs.
    """

    name: str
    level: str
    cost: float
    accuracy: float
    gap: float
    half_width: float
    seeds: int


def points(runs: pd.DataFrame) -> list[Point]:
    """The rows of some runs, cheapest first.

    Raises:
        RunError: no run is called ``backprop``, or runs do not say what a step costs.
    """
    if "step_flops" not in runs or METRIC not in runs:
        raise RunError(f"These runs do not say step_flops and {METRIC}: run them anew.")
    runs = runs.assign(row=[re.sub(r"-seed(_everything)?\d+$", "", name) for name in runs["name"]])
    rows = dict(iter(runs.groupby("row", sort=False)))
    if BASE not in rows:
        raise RunError(f"No run is called {BASE}: the others have nothing to be compared with.")
    base = rows[BASE]
    found = [_point(str(name), row, base) for name, row in rows.items()]
    return sorted(found, key=lambda point: point.cost)


def _point(name: str, row: pd.DataFrame, base: pd.DataFrame) -> Point:
    def work(some: pd.DataFrame) -> float:
        return float((some["step_flops"] * some["global_step"] * some["batch_size"]).mean())

    ours, theirs = 100 * row[METRIC], 100 * base[METRIC]
    return Point(
        name=name,
        level=row["level"].iloc[0] or "?",
        cost=work(row) / work(base),
        accuracy=ours.mean(),
        gap=theirs.mean() - ours.mean(),
        half_width=0.0 if name == BASE else _half_width(ours, theirs),
        seeds=len(row),
    )


def _half_width(ours: pd.Series, theirs: pd.Series) -> float:
    """Of the 95 % interval of the difference of two means, in points."""
    if min(len(ours), len(theirs)) > 1:
        interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
        return float(interval.high - interval.low) / 2
    variance = sum(mean * (100 - mean) / TEST_IMAGES for mean in (ours.mean(), theirs.mean()))
    return 1.96 * math.sqrt(variance)


def draw(folders: Sequence[Path], path: Path) -> None:
    """Draw gap against cost into a PNG file, and print it."""
    found = points(find_runs(folders))
    rows = [
        [p.name, p.level, f"{p.cost:.2f}", f"{p.accuracy:.2f}", f"{p.gap:+.2f} ± {p.half_width:.2f}", str(p.seeds)]
        for p in found
    ]
    headings = ["", "level", "FLOPs, × backprop", "test top-1, %", "gap, points", "seeds"]
    tables.show(headings, rows, words=["", "level"])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    ends = [p for p in found if p.name in (BASE, f"{BASE}_equal_flops")]
    axes.plot([p.cost for p in ends], [p.gap for p in ends], color="black", linestyle="--", zorder=1)
    markers = {"A": "o", "B": "s", "C": "^", "D": "x"}
    for p in found:
        marker = markers.get(p.level[0], "*")
        axes.errorbar(p.cost, p.gap, p.half_width, marker=marker, capsize=2, color="black" if p.level == "D" else None)
        axes.annotate(p.name.replace("_", " "), (p.cost, p.gap), (5, 4), textcoords="offset points", fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="FLOPs of the training, × backpropagation's", ylabel="points below backpropagation")
    axes.set_title("○ A: local   □ B: parameters travel   △ C: gradients cross a boundary   × D: global", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main(args: Sequence[str] | None = None) -> None:
    """Draw the runs that are asked for."""
    draw_runs(__doc__, "gap_against_flops.png", draw, args)


if __name__ == "__main__":
    main()
