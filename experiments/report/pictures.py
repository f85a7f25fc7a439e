"""The pictures of ``report``: accuracy against depth and against cost, memory and speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no screen is needed
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from experiments.report.columns import columns
from experiments.report.rows import Row


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Accuracy against depth, memory and speed: one colour per row, named at the bars.

    Args:
        rows: what to draw.
        title: what they share.
        path: the PNG file.
    """
    _, cells = columns(rows)
    problems = _problems(cells)
    names = [", ".join([row.method, _nodes(row), *problem]) for row, problem in zip(rows, problems, strict=True)]
    labels = [fill(name, 45) for name in names]
    tallest = max(label.count("\n") + 1 for label in labels)
    height = max(4, 1.5 + max(0.35, 0.2 * tallest) * len(rows))
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
    units = {"network": "{}", "data": "{}", "epochs": "epochs {}", "batch": "batch {}"}
    varied = [[unit.format(cell) for cell in cells[heading]] for heading, unit in units.items() if heading in cells]
    return [list(problem) for problem in zip(*varied, strict=True)] if varied else [[] for _ in cells["method"]]


def _nodes(row: Row) -> str:
    k, g = row.nodes
    text = f"K = {k}" + (f", G = {g}" if g > 1 else "")
    return text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def _draw_depth(axes: Axes, rows: Sequence[Row], colours: Sequence[Any]) -> None:
    for row, colour in zip(rows, colours, strict=True):
        axes.plot(*_depth_line(row), color=colour, markersize=7, clip_on=False, zorder=3)
        if done := row.when_done():
            axes.plot(_depths(len(done)), done, ".-.", color=colour, clip_on=False, zorder=2)
        if learned := row.blocks("train_set"):
            axes.plot(_depths(len(learned)), learned, ".:", color=colour, clip_on=False, zorder=2)
        if (final := row.mean("test/final/top1")) is not None:
            axes.plot(1, 100 * final, "*", color=colour, markersize=13, clip_on=False, zorder=4)
    axes.set(xlabel="depth of the block's end, share of the blocks", ylabel="top-1, %", xlim=(0, 1))
    dashed = any(row.linear_probe() and not row.blocks() for row in rows)
    dotted = any(row.blocks("train_set") for row in rows)
    kinds = {
        "★: final head": any(row.mean("test/final/top1") is not None for row in rows),
        "dashed: linear probe": dashed,
        "dotted: training images": dotted,
        "dash-dotted: validation images, when the block was done": any(row.when_done() for row in rows),
    }
    shown = [kind for kind, there in kinds.items() if there]
    axes.set_title(
        fill("; ".join(["Each block's own prediction, test images (colours: at the bars)", *shown]), 80), fontsize=10
    )
    axes.spines[["top", "right"]].set_visible(False)


def _depth_line(row: Row) -> tuple[list[float], list[float], str]:
    """Depths, accuracies and style: of the blocks' own predictions or, of blocks that make none, of linear probes."""
    if blocks := row.blocks():
        return _depths(len(blocks)), blocks, "o-"
    probed = row.linear_probe()
    return [k / row.nodes[0] for k in probed], list(probed.values()), "o--"


def _depths(count: int) -> list[float]:
    return [(k + 1) / count for k in range(count)]


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
    axes.xaxis.set_major_locator(MaxNLocator(4))
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
        axes.plot([], [], "o-", color=colour, label=fill(name, 40))
        for row, x, y in zip(line, cost, top1, strict=True):
            axes.annotate(f"K{row.nodes[0]}", (x, y), ha="center", va="center", fontsize=7)
    axes.set_xscale("log")
    left, right = axes.set_xlim(axes.get_xlim())  # which the locator would widen to whole decades
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right > 30 * left else (1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="forward pass of the slowest node, M MACs per image", ylabel="test top-1, %")
    meaning = "area: cost of inference; full: the model's prediction, empty: the ensemble's; bars: ± sd over seeds"
    figure.suptitle(f"{title}\n{meaning}", fontsize=9)
    if series:
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
