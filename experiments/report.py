"""``report``: one table and one picture over finished runs."""

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no screen is needed
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from experiments.errors import RunError
from experiments.run_folder import SUMMARY

HEADINGS = ("method", "network", "data", "K", "seeds", "test top-1 of each block, %", "test top-1 %", "ensemble %")
RATIO_HEADINGS = ("images/s", "peak activations, MiB")


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seed.

    Attributes:
        summaries: their ``summary.json`` files.
        base: the row of Backprop with the same network, data and batch size, if there is one.
    """

    summaries: Sequence[dict[str, Any]]
    base: "Row | None" = None

    @property
    def first(self) -> dict[str, Any]:
        """Any of the summaries: what they share."""
        return self.summaries[0]

    def values(self, key: str) -> list[float]:
        """A figure of every seed: of ``metrics`` if it is there, else of the summary."""
        found = [s["metrics"].get(key, s.get(key)) for s in self.summaries]
        return [value for value in found if value is not None]

    def mean(self, key: str) -> float | None:
        """Mean over the seeds."""
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def ratio(self, key: str) -> float | None:
        """Mean over Backprop's mean."""
        own, base = self.mean(key), self.base.mean(key) if self.base else None
        return own / base if own is not None and base else None

    def blocks(self) -> list[float]:
        """Mean test top-1 of each block, in %."""
        names = (f"test/block{k}/top1" for k in range(1, self.first["num_blocks"] + 1))
        return [100 * value for value in map(self.mean, names) if value is not None]

    @property
    def label(self) -> str:
        """Name in the picture."""
        blocks = self.first["num_blocks"]
        return self.first["method"] if self.first["method"] == "Backprop" else f"{self.first['method']}, K = {blocks}"


def find_summaries(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """All summaries in or below the given folders.

    Raises:
        RunError: there is none, or one cannot be read.
    """
    files = sorted({file for path in paths for file in path.rglob(SUMMARY)})
    if not files:
        raise RunError(f"No finished run in {', '.join(map(str, paths))}: a finished run has a {SUMMARY}.")
    summaries = []
    for file in files:
        try:
            summaries.append(json.loads(file.read_text()))
        except json.JSONDecodeError as fault:
            raise RunError(f"{file} is damaged ({fault}). Run that run again.") from fault
    return summaries


def group(summaries: Sequence[dict[str, Any]]) -> list[Row]:
    """One row per setting, seeds together, Backprop first, then by K."""
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for summary in summaries:
        same_problem = (summary["network"], summary["dataset"], summary["batch_size"], summary["epochs"])
        settings.setdefault((*same_problem, summary["method"], summary["num_blocks"]), []).append(summary)
    bases = {key[:4]: Row(runs) for key, runs in settings.items() if key[4] == "Backprop"}
    rows = [Row(runs, bases.get(key[:4])) for key, runs in settings.items()]
    return sorted(
        rows, key=lambda r: (r.first["network"], r.first["dataset"], r.first["method"], r.first["num_blocks"])
    )


def _percent(row: Row, key: str) -> str:
    values = [100 * value for value in row.values(key)]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    ratio = row.ratio(key)
    return f"{statistics.fmean(values):.2f}{spread}" + (f" (×{ratio:.3f})" if ratio is not None else "")


def _quantity(row: Row, key: str, unit: float) -> str:
    value, ratio = row.mean(key), row.ratio(key)
    if value is None:
        return "–"
    return f"{value / unit:,.1f}" + (f" (×{ratio:.2f})" if ratio is not None else "")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of the headings; (×…) is the ratio to Backprop."""
    first = row.first
    return (
        first["method"],
        first["network"],
        first["dataset"],
        str(first["num_blocks"]),
        str(len(row.summaries)),
        " ".join(f"{value:.1f}" for value in row.blocks()),
        _percent(row, "test/top1"),
        _percent(row, "test/ensemble/top1"),
        _quantity(row, "images_per_second", 1),
        _quantity(row, "peak_activation_bytes", 2**20),
    )


def report(paths: Sequence[Path], output: Path) -> None:
    """Print a table of finished runs and write ``report.md``, ``report.csv`` and ``report.png``.

    Args:
        paths: run folders, or folders of them.
        output: folder for the files.

    Raises:
        RunError: there is no finished run.
    """
    rows = group(find_summaries(paths))
    headings = (*HEADINGS, *RATIO_HEADINGS)
    table = Table(title="(×…) is the ratio to Backprop of the same network, data and epochs", title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in HEADINGS[:3] else "right")
    texts = [cells(row) for row in rows]
    for text in texts:
        table.add_row(*text)
    Console(width=max(100, Console().width)).print(table)
    output.mkdir(parents=True, exist_ok=True)
    lines = [headings, ("---",) * len(headings), *texts]
    (output / "report.md").write_text("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    with (output / "report.csv").open("w", newline="") as file:
        csv.writer(file).writerows([headings, *texts])
    picture = output / "report.png"
    draw(rows, picture)
    print(f"Table:      {output / 'report.md'}\nPicture:    {picture}\nTo watch:   tensorboard --logdir {output}")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against depth, memory and speed: one colour per row."""
    figure, (accuracy, memory, speed) = plt.subplots(
        1, 3, figsize=(13, 4), width_ratios=(2, 1, 1), layout="constrained"
    )
    colours = plt.get_cmap("tab10")
    for i, row in enumerate(rows):
        blocks = row.blocks()
        depth = [(k + 1) / len(blocks) for k in range(len(blocks))]
        accuracy.plot(
            depth, blocks, "o-", color=colours(i % 10), label=row.label, markersize=7, clip_on=False, zorder=3
        )
    accuracy.set(
        xlabel="depth of the block's end, share of the blocks",
        ylabel="test top-1, %",
        title="Each block's own prediction",
    )
    accuracy.set_xlim(0, 1)
    accuracy.legend(frameon=False, loc="lower right")
    bars = (
        (memory, "peak_activation_bytes", 2**20, "Peak activations, MiB"),
        (speed, "images_per_second", 1, "Training speed, images/s"),
    )
    for axes, key, unit, title in bars:
        values = [(row.mean(key) or 0) / unit for row in rows]
        drawn = axes.barh(range(len(rows)), values, color=[colours(i % 10) for i in range(len(rows))])
        axes.bar_label(drawn, [f"{value:,.1f}" if value < 100 else f"{value:,.0f}" for value in values], padding=3)
        axes.set_yticks(range(len(rows)), [row.label for row in rows] if axes is memory else [])
        axes.invert_yaxis()
        axes.set_title(title)
        axes.set_xlim(0, 1.25 * max(values, default=1) or 1)
    for axes in (accuracy, memory, speed):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
