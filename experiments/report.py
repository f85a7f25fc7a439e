"""``report``: one table and one picture over finished runs."""

import csv
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no screen is needed
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.errors import RunError
from experiments.run_folder import SUMMARY


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seed.

    Attributes:
        summaries: their ``summary.json`` files.
        base: the row of Backprop (or of K = 1) with the same network, data and batch size, if there is one.
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
    # One block is backpropagation whatever the method is called; Backprop itself is preferred.
    one_block = [(key, runs) for key, runs in settings.items() if key[5] == 1]
    bases = {key[:4]: Row(runs) for key, runs in sorted(one_block, key=lambda entry: entry[0][4] == "Backprop")}
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
    return f"{statistics.fmean(values):.2f}{spread}" + (f" (×{ratio:.2f})" if ratio is not None else "")


def _quantity(row: Row, key: str, unit: float) -> str:
    value, ratio = row.mean(key), row.ratio(key)
    if value is None:
        return "–"
    return f"{value / unit:,.{1 if value < 1000 * unit else 0}f}" + (f" (×{ratio:.2f})" if ratio is not None else "")


_SETTINGS: Mapping[str, Callable[[Row], str]] = {
    "network": lambda row: row.first["network"],
    "data": lambda row: row.first["dataset"],
    "epochs": lambda row: str(row.first["epochs"]),
    "batch": lambda row: str(row.first["batch_size"]),
    "seeds": lambda row: str(len(row.summaries)),
}
"""Columns that are left out of the table, and named in its title, where all rows agree."""

_FIGURES: Mapping[str, Callable[[Row], str]] = {
    "each block, %": lambda row: " ".join(f"{value:.1f}" for value in row.blocks()),
    "test top-1, %": lambda row: _percent(row, "test/top1"),
    "ensemble, %": lambda row: _percent(row, "test/ensemble/top1"),
    "images/s": lambda row: _quantity(row, "images_per_second", 1),
    "peak MiB": lambda row: _quantity(row, "peak_activation_bytes", 2**20),
}


def columns(rows: Sequence[Row]) -> tuple[str, dict[str, list[str]]]:
    """What the rows share, as one line, and the table as heading → cells; (×…) is the ratio to Backprop."""
    settings = {heading: [text(row) for row in rows] for heading, text in _SETTINGS.items()}
    shared = {heading: cells[0] for heading, cells in settings.items() if len(set(cells)) == 1}
    table = {"method": [row.first["method"] for row in rows], "K": [str(row.first["num_blocks"]) for row in rows]}
    table |= {heading: cells for heading, cells in settings.items() if heading not in shared}
    table |= {heading: [text(row) for row in rows] for heading, text in _FIGURES.items()}
    return ", ".join(f"{heading} {value}" for heading, value in shared.items()), table


def report(paths: Sequence[Path], output: Path) -> None:
    """Print a table of finished runs and write ``report.md``, ``report.csv`` and ``report.png``.

    Args:
        paths: run folders, or folders of them.
        output: folder for the files.

    Raises:
        RunError: there is no finished run.
    """
    rows = group(find_summaries(paths))
    shared, cells = columns(rows)
    note = "Test split; speed as it was on the machine at that time."
    if any(row.base for row in rows):
        note += " (×…) is the ratio to Backprop of the same network, data, epochs and batch size."
    table = Table(title=shared, title_justify="left", caption=note, caption_justify="left", box=box.SIMPLE_HEAD)
    for heading in cells:
        words = heading in ("method", "network", "data")
        table.add_column(heading, justify="left" if words else "right", no_wrap=words)
    lines = list(zip(*cells.values(), strict=True))
    for line in lines:
        table.add_row(*line)
    Console(width=max(100, Console().width)).print(table)
    output.mkdir(parents=True, exist_ok=True)
    markdown = [list(cells), ["---"] * len(cells), *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in markdown)
    (output / "report.md").write_text(f"{shared}\n\n{text}\n\n{note}\n")
    with (output / "report.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(cells), *lines])
    picture = output / "report.png"
    draw(rows, shared, picture)
    print(f"Table:      {output / 'report.md'}\nPicture:    {picture}\nTo watch:   tensorboard --logdir {output}")


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Accuracy against depth, memory and speed: one colour per row.

    Args:
        rows: what to draw.
        title: what they share.
        path: the PNG file.
    """
    _, cells = columns(rows)
    varied = [heading for heading in ("network", "data", "epochs", "batch") if heading in cells]
    labels = [
        ", ".join([f"{method}, K = {k}", *(cells[heading][i] for heading in varied)])
        for i, (method, k) in enumerate(zip(cells["method"], cells["K"], strict=True))
    ]
    height = max(4, 1.5 + 0.35 * len(rows))
    figure, axes = plt.subplots(1, 3, figsize=(14, height), width_ratios=(2, 1, 1), layout="constrained")
    figure.suptitle(title)
    colours = [plt.get_cmap("viridis")(0.9 * i / max(len(rows) - 1, 1)) for i in range(len(rows))]
    _draw_depth(axes[0], rows, labels, colours)
    _draw_bars(axes[1], rows, labels, colours, "peak_activation_bytes", 2**20, "Peak activations, MiB")
    _draw_bars(axes[2], rows, [""] * len(rows), colours, "images_per_second", 1, "Training speed, images/s")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_depth(axes: Axes, rows: Sequence[Row], labels: Sequence[str], colours: Sequence[Any]) -> None:
    for row, label, colour in zip(rows, labels, colours, strict=True):
        blocks = row.blocks()
        depth = [(k + 1) / len(blocks) for k in range(len(blocks))]
        axes.plot(depth, blocks, "o-", color=colour, label=label, markersize=7, clip_on=False, zorder=3)
    axes.set(xlabel="depth of the block's end, share of the blocks", ylabel="test top-1, %", xlim=(0, 1))
    axes.set_title("Each block's own prediction")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_bars(
    axes: Axes, rows: Sequence[Row], labels: Sequence[str], colours: Sequence[Any], key: str, unit: float, title: str
) -> None:
    values = [(row.mean(key) or 0) / unit for row in rows]
    bars = axes.barh(range(len(rows)), values, color=colours)
    axes.bar_label(bars, [f"{value:,.{1 if value < 100 else 0}f}" for value in values], padding=3)
    axes.set_yticks(range(len(rows)), labels)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_title(title)
    axes.set_xlim(0, 1.25 * max(values) or 1)
    axes.spines[["top", "right"]].set_visible(False)
