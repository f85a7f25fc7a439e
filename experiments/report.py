"""``report``: one table and one picture over finished runs."""

import csv
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import matplotlib
import yaml

matplotlib.use("Agg")  # files only: no screen is needed
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.errors import RunError
from experiments.run_folder import CONFIG, SUMMARY


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seed.

    Attributes:
        summaries: their ``summary.json`` files.
        base: the row of Backprop (or of one block without groups) with the same network, data and batch size, if
            there is one.
        variant: settings in which it differs from other rows of the same method and problem.
    """

    summaries: Sequence[dict[str, Any]]
    base: "Row | None" = None
    variant: str = ""

    @property
    def first(self) -> dict[str, Any]:
        """Any of the summaries: what they share."""
        return self.summaries[0]

    @property
    def method(self) -> str:
        """Method, and in brackets what sets it apart from other rows of the same method."""
        return self.first["method"] + (f" ({self.variant})" if self.variant else "")

    @property
    def nodes(self) -> tuple[int, int]:
        """(K, G)."""
        return self.first["num_blocks"], self.first["num_groups"]

    def values(self, key: str) -> list[float]:
        """A figure of every seed: of ``metrics`` if it is there, else of the summary."""
        found = [s["metrics"].get(key, s.get(key)) for s in self.summaries]
        return [value for value in found if value is not None]

    def mean(self, key: str) -> float | None:
        """Mean over the seeds."""
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def spread(self, key: str) -> float:
        """Standard deviation over the seeds; 0 of one seed."""
        values = self.values(key)
        return statistics.stdev(values) if len(values) > 1 else 0.0

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
    return [_read(file) for file in files]


def _read(file: Path) -> dict[str, Any]:
    """A summary, and under ``settings`` the configuration of its run as far as it may change a result."""
    config = file.with_name(CONFIG)
    try:
        summary = {"num_groups": 1} | json.loads(file.read_text())
        known = yaml.safe_load(config.read_text()) if config.is_file() else {}
    except json.JSONDecodeError as fault:
        raise RunError(f"{file} is damaged ({fault}). Run that run again.") from fault
    except yaml.YAMLError as fault:
        raise RunError(f"{config} is damaged. Run that run again.") from fault
    parts = {part: known.get(part) for part in ("model", "data")}
    settings = {name: value for name, value in _flat(parts) if name.split(".")[-1] not in _NO_SETTINGS}
    return summary | {"settings": settings}


_NO_SETTINGS = ("seed", "root", "download", "num_workers", "num_blocks", "num_groups")
"""What changes no result, or has a column of its own."""


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested dicts as (dotted path, text)."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else key)
    else:
        yield path, str(tree)


class _Setting(NamedTuple):
    """What runs of one row have in common."""

    problem: tuple[Any, ...]
    method: str
    nodes: tuple[int, int]
    options: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Self:
        problem = tuple(summary[name] for name in ("network", "dataset", "batch_size", "epochs"))
        nodes = summary["num_blocks"], summary["num_groups"]
        return cls(problem, summary["method"], nodes, frozenset(summary["settings"].items()))


def group(summaries: Sequence[dict[str, Any]]) -> list[Row]:
    """One row per setting, seeds together, Backprop first, then by method, G and K."""
    settings: dict[_Setting, list[dict[str, Any]]] = {}
    for summary in summaries:
        settings.setdefault(_Setting.of(summary), []).append(summary)
    # One block without groups is backpropagation whatever the method is called; Backprop itself is preferred.
    whole = [(key, runs) for key, runs in settings.items() if key.nodes == (1, 1)]
    bases = {key.problem: Row(runs) for key, runs in sorted(whole, key=lambda pair: pair[0].method == "Backprop")}
    rows = []
    for key, runs in settings.items():
        alike = [dict(one.options) for one in settings if (one.problem, one.method) == (key.problem, key.method)]
        rows.append(Row(runs, bases.get(key.problem), _variant(dict(key.options), alike)))
    return sorted(rows, key=lambda r: (r.first["network"], r.first["dataset"], r.method, *reversed(r.nodes)))


def _variant(settings: Mapping[str, str], alike: Sequence[Mapping[str, str]]) -> str:
    """Those settings that differ between configurations, named by the last part of their path."""
    varied = {name for other in alike for name in other if len({one.get(name) for one in alike}) > 1}
    return ", ".join(f"{name.split('.')[-1]} {settings[name]}" for name in sorted(varied) if name in settings)


def _percent(row: Row, key: str) -> str:
    values = [100 * value for value in row.values(key)]
    if not values:
        return "–"
    spread = f" ± {100 * row.spread(key):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


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
    "one group, %": lambda row: _percent(row, f"test/block{row.first['num_blocks']}/group1/top1"),
    "slowest node, M MACs": lambda row: _quantity(row, "slowest_node_macs", 1e6),
    "images/s": lambda row: _quantity(row, "images_per_second", 1),
    "peak MiB": lambda row: _quantity(row, "peak_activation_bytes", 2**20),
}

_COSTS = ("slowest node, M MACs", "images/s", "peak MiB")


def columns(rows: Sequence[Row]) -> tuple[str, dict[str, list[str]]]:
    """What the rows share, as one line, and the table as heading → cells; (×…) is the ratio to Backprop."""
    settings = {heading: [text(row) for row in rows] for heading, text in _SETTINGS.items()}
    shared = {heading: cells[0] for heading, cells in settings.items() if len(set(cells)) == 1}
    table = {"method": [row.method for row in rows], "K": [str(row.nodes[0]) for row in rows]}
    table |= {"G": [str(row.nodes[1]) for row in rows]} if any(row.nodes[1] > 1 for row in rows) else {}
    table |= {heading: cells for heading, cells in settings.items() if heading not in shared}
    figures = {heading: [text(row) for row in rows] for heading, text in _FIGURES.items()}
    table |= {heading: cells for heading, cells in figures.items() if any(cell != "–" for cell in cells)}
    return ", ".join(f"{heading} {value}" for heading, value in shared.items()), table


def report(paths: Sequence[Path], output: Path) -> None:
    """Print a table of finished runs; write ``report.md``, ``report.csv``, ``report.png`` and ``cost.png``.

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
    _print(cells, shared, note)
    output.mkdir(parents=True, exist_ok=True)
    lines = list(zip(*cells.values(), strict=True))
    markdown = [list(cells), ["---"] * len(cells), *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in markdown)
    (output / "report.md").write_text(f"{shared}\n\n{text}\n\n{note}\n")
    with (output / "report.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(cells), *lines])
    picture = output / "report.png"
    draw(rows, shared, picture)
    draw_cost(rows, shared, output / "cost.png")
    print(f"Table:      {output / 'report.md'}\nPictures:   {picture}, {output / 'cost.png'}")
    print(f"To watch:   tensorboard --logdir {output}")


def _print(cells: Mapping[str, Sequence[str]], title: str, note: str) -> None:
    """The accuracies, then what they cost: side by side they would not fit a terminal."""
    who = [heading for heading in cells if heading not in _FIGURES]
    costs = [heading for heading in _COSTS if heading in cells]
    accuracies = [heading for heading in _FIGURES if heading in cells and heading not in _COSTS]
    for headings, above, below in ((accuracies, title, None), (costs, None, note)):
        table = Table(title=above, title_justify="left", caption=below, caption_justify="left", box=box.SIMPLE_HEAD)
        for heading in [*who, *headings]:
            words = heading in ("method", "network", "data")
            table.add_column(heading, justify="left" if words else "right", no_wrap=words)
        for line in zip(*(cells[heading] for heading in [*who, *headings]), strict=True):
            table.add_row(*line)
        Console(width=max(130, Console().width)).print(table)


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Accuracy against depth, memory and speed: one colour per row, named at the bars.

    Args:
        rows: what to draw.
        title: what they share.
        path: the PNG file.
    """
    _, cells = columns(rows)
    problems = _problems(cells)
    labels = [", ".join([row.method, _nodes(row), *problem]) for row, problem in zip(rows, problems, strict=True)]
    height = max(4, 1.5 + 0.35 * len(rows))
    figure, axes = plt.subplots(1, 3, figsize=(14, height), width_ratios=(2, 1, 1), layout="constrained")
    figure.suptitle(title)
    colours = [plt.get_cmap("viridis")(0.9 * i / max(len(rows) - 1, 1)) for i in range(len(rows))]
    _draw_depth(axes[0], rows, colours)
    _draw_bars(axes[1], rows, labels, colours, "peak_activation_bytes", 2**20, "Peak activations, MiB")
    _draw_bars(axes[2], rows, [""] * len(rows), colours, "images_per_second", 1, "Training speed, images/s")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _problems(cells: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """What a row of the table was trained on, as far as the rows differ in it."""
    units = {"network": "", "data": "", "epochs": " epochs", "batch": " a batch"}
    varied = [[cell + unit for cell in cells[heading]] for heading, unit in units.items() if heading in cells]
    return [list(problem) for problem in zip(*varied, strict=True)] if varied else [[] for _ in cells["method"]]


def _nodes(row: Row) -> str:
    k, g = row.nodes
    return f"K = {k}" + (f", G = {g}" if g > 1 else "")


def _draw_depth(axes: Axes, rows: Sequence[Row], colours: Sequence[Any]) -> None:
    for row, colour in zip(rows, colours, strict=True):
        blocks = row.blocks()
        depth = [(k + 1) / len(blocks) for k in range(len(blocks))]
        axes.plot(depth, blocks, "o-", color=colour, markersize=7, clip_on=False, zorder=3)
        if (final := row.mean("test/final/top1")) is not None:
            axes.plot(1, 100 * final, "*", color=colour, markersize=13, clip_on=False, zorder=4)
    axes.set(xlabel="depth of the block's end, share of the blocks", ylabel="test top-1, %", xlim=(0, 1))
    axes.set_title("Each block's own prediction; ★: final head")
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


def draw_cost(rows: Sequence[Row], title: str, path: Path) -> None:
    """Accuracy against the MACs of the slowest node, in the manner of the GN-DGL paper: one line per method and G.

    The area of a bubble is the cost of inference. Full bubbles are the model's own prediction, empty ones
    the ensemble's; bars are standard deviations over seeds.

    Args:
        rows: what to draw.
        title: what they share.
        path: the PNG file.
    """
    series: dict[str, list[Row]] = {}
    for row, problem in zip(rows, _problems(columns(rows)[1]), strict=True):
        if row.mean("slowest_node_macs") and row.mean("test/top1") is not None:
            groups = [f"G = {row.nodes[1]}"] if row.nodes[1] > 1 else []
            series.setdefault(", ".join([row.method, *groups, *problem]), []).append(row)
    figure, axes = plt.subplots(figsize=(11, 6), layout="constrained")
    largest = max((row.mean("ensemble_macs") for line in series.values() for row in line), default=1)
    for number, (name, line) in enumerate(series.items()):
        colour = plt.get_cmap("tab20" if len(series) > 10 else "tab10")(number)
        _draw_bubbles(axes, line, "test/ensemble/top1", "ensemble_macs", largest, edgecolors=colour, facecolors="none")
        _draw_bubbles(axes, line, "test/top1", "inference_macs", largest, color=colour, alpha=0.6)
        cost = [row.mean("slowest_node_macs") / 1e6 for row in line]
        top1 = [100 * row.mean("test/top1") for row in line]
        spread = [100 * row.spread("test/top1") for row in line]
        axes.errorbar(cost, top1, spread, color=colour, linewidth=1, capsize=2)
        axes.plot([], [], "o-", color=colour, label=name)
        for row, x, y in zip(line, cost, top1, strict=True):
            axes.annotate(f"K{row.nodes[0]}", (x, y), ha="center", va="center", fontsize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set(xlabel="forward pass of the slowest node, M MACs per image", ylabel="test top-1, %")
    meaning = "area: cost of inference; full: the model's prediction, empty: the ensemble's; bars: ± sd over seeds"
    axes.set_title(f"{title}\n{meaning}", fontsize=9)
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_bubbles(axes: Axes, rows: Sequence[Row], key: str, cost: str, largest: float, **style: Any) -> None:
    rows = [row for row in rows if row.mean(key) is not None]
    points = [(row.mean("slowest_node_macs") / 1e6, 100 * row.mean(key), row.mean(cost) / largest) for row in rows]
    if points:
        x, y, area = zip(*points, strict=True)
        axes.scatter(x, y, [900 * a for a in area], **style)
