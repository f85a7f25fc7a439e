"""The pictures of ``report``: accuracy against depth and against cost, memory and speed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from experiments.report.rows import Row

Who = Sequence[Mapping[Any, str]]
"""What tells each row apart: heading → cell."""

_SAID = {"method": "{}", "K": "K = {}", "G": "G = {}", "network": "{}", "data": "{}"}
_SAID |= {"epochs": "epochs {}", "batch": "batch {}"}
"""Heading → what of its cell is in the name of a row."""

_STYLES = {
    "*": "★: final head",
    "o--": "dashed: linear probe",
    ".:": "dotted: training images",
    ".-.": "dash-dotted: validation images, when the block was done",
}
"""Style of a line → its meaning, beside the blocks' own predictions."""


def _name(who: Mapping[Any, str], without: str = "", width: int = 45) -> str:
    """Method, nodes, and what it was trained on as far as the rows differ in it, in lines."""
    cells = {heading: who[heading] for heading in _SAID if heading in who and heading != without}
    told = [_SAID[heading].format(cell) for heading, cell in cells.items() if (heading, cell) != ("G", "1")]
    return fill(", ".join(told).replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"), width)


@mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False})
def draw(rows: Sequence[Row], who: Who, title: str, path: Path) -> None:
    """Accuracy against depth, memory and speed: one colour per row, named at the bars; ``title`` is what rows share."""
    names = [_name(apart) for apart in who]
    tallest = max(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(14, max(4, 1.5 + max(0.35, 0.2 * tallest) * len(rows))), layout="constrained")
    depth, memory, speed = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    figure.suptitle(title)
    colours = [mpl.colormaps["viridis"](0.9 * i / max(len(rows) - 1, 1)) for i in range(len(rows))]
    _draw_depth(depth, rows, colours)
    bytes_held, rates = ([row.mean.get(m, 0) for row in rows] for m in ("peak_activation_bytes", "images_per_second"))
    _draw_bars(memory, "Peak activations, MiB", names, [value / 2**20 for value in bytes_held], colours)
    _draw_bars(speed, "Training speed, images/s", [""] * len(rows), rates, colours)
    figure.savefig(path, dpi=150)


def _draw_depth(axes: Axes, rows: Sequence[Row], colours: Sequence[Any]) -> None:
    lines = [_depth_lines(row) for row in rows]
    for row, colour, its_lines in zip(rows, colours, lines, strict=True):
        for style, blocks in its_lines.items():
            size, level = {"o": (7, 3), ".": (6, 2), "*": (13, 4)}[style[0]]
            depths = [k / row.nodes[0] for k in blocks]
            axes.plot(depths, [*blocks.values()], style, color=colour, markersize=size, clip_on=False, zorder=level)
    shown = [meaning for style, meaning in _STYLES.items() if any(style in its_lines for its_lines in lines)]
    title = "; ".join(["Each block's own prediction, test images (colours: at the bars)", *shown])
    axes.set(xlabel="depth of the block's end, share of the blocks", ylabel="top-1, %", xlim=(0, 1))
    axes.set_title(fill(title, 80), fontsize=10)


def _depth_lines(row: Row) -> dict[str, dict[int, float]]:
    """Style → number of a block → accuracy; linear probes of blocks that make no predictions of their own."""
    lines = {
        "o-": row.blocks(),
        "o--": {} if row.blocks() else row.linear_probe(),
        ".-.": row.when_done(),
        ".:": row.blocks("train_set/{}/top1"),
        "*": {row.nodes[0]: 100 * final} if (final := row.mean.get("test/final/top1")) is not None else {},
    }
    return {style: blocks for style, blocks in lines.items() if blocks}


def _draw_bars(axes: Axes, title: str, names: Sequence[str], values: Sequence[float], colours: Sequence[Any]) -> None:
    bars = axes.barh(range(len(values)), values, color=colours)
    axes.bar_label(bars, [f"{value:,.{1 if value < 100 else 0}f}" for value in values], padding=3)
    axes.set_yticks(range(len(values)), names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set(title=title, xlim=(0, 1.25 * max(values) or 1))
    axes.xaxis.set_major_locator(MaxNLocator(4))


@mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False})
def draw_cost(rows: Sequence[Row], who: Who, title: str, path: Path) -> None:
    """Accuracy against the MACs of the slowest node, in the manner of the GN-DGL paper: one line per method and G.

    The area of a bubble is the cost of inference, as there. Full bubbles are the model's own prediction, empty ones the
    ensemble's (which the paper has of neuron groups), those with a black rim that of a group alone ("single thread"),
    where groups never see each other; bars are standard deviations over seeds.
    """
    lines: dict[str, list[Row]] = {}
    for row, apart in zip(rows, who, strict=True):
        if "slowest_node_macs" in row.mean and "test/top1" in row.mean:
            lines.setdefault(_name(apart, without="K", width=40), []).append(row)
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots()
    largest = max((row.mean["ensemble_macs"] for line in lines.values() for row in line), default=1)
    colours = mpl.colormaps["tab20" if len(lines) > 10 else "tab10"]
    for number, (name, line) in enumerate(lines.items()):
        _draw_cost_line(axes, name, line, colours(number), _LARGEST / largest)
    _set_cost_axis(axes)
    meaning = "full: the model's prediction; empty: the ensemble's; black rim: a group alone; bars: ± sd over seeds"
    figure.suptitle(f"{title}\n{meaning}", fontsize=9)
    if lines:
        figure.legend(frameon=False, fontsize=8, loc="outside right center")
        _draw_size_key(axes, largest)
    figure.savefig(path, dpi=150)


_LARGEST = 900
"""Area of the largest bubble of the cost picture, in square points."""


def _draw_cost_line(axes: Axes, name: str, rows: Sequence[Row], colour: Any, area: float) -> None:
    """A line and its bubbles, of ``area`` square points per MAC."""

    def bubbles(metric: str, cost: str, **style: Any) -> None:
        known = [(row.mean, own) for row in rows if {own := metric.format(row.nodes[0]), cost} <= {*row.mean.index}]
        x, y = [mean["slowest_node_macs"] / 1e6 for mean, _ in known], [100 * mean[own] for mean, own in known]
        axes.scatter(x, y, [area * mean[cost] for mean, _ in known], **style)

    bubbles("test/ensemble/top1", "ensemble_macs", edgecolors=colour, facecolors="none")
    bubbles("test/top1", "inference_macs", color=colour, alpha=0.6)
    bubbles("test/block{}/group1/top1", "thread_macs", edgecolors="black", facecolors=[colour], zorder=3)
    x, y = [row.mean["slowest_node_macs"] / 1e6 for row in rows], [100 * row.mean["test/top1"] for row in rows]
    axes.errorbar(x, y, [100 * row.spread["test/top1"] for row in rows], color=colour, linewidth=1, capsize=2)
    axes.plot([], [], "o-", color=colour, label=name)
    for row, place in zip(rows, zip(x, y, strict=True), strict=True):
        axes.annotate(f"K{row.nodes[0]}", place, ha="center", va="center", fontsize=7)


def _draw_size_key(axes: Axes, largest: float) -> None:
    sizes = MaxNLocator(4).tick_values(0, largest / 1e6)[1:-1]
    rims: dict[str, Any] = {"facecolors": "none", "edgecolors": "grey"}
    handles = [axes.scatter([], [], _LARGEST * 1e6 * size / largest, label=f"{size:g}", **rims) for size in sizes]
    axes.legend(
        handles=handles,
        title="area: inference, M MACs",
        fontsize=8,
        title_fontsize=8,
        frameon=False,
        loc="lower right",
        ncols=len(sizes),
        labelspacing=2,
        handletextpad=1.2,
        borderpad=1.5,
    )


def _set_cost_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    left, right = axes.set_xlim(axes.get_xlim())  # which the locator would widen to whole decades
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if right > 30 * left else (1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="forward pass of the slowest node, M MACs per image", ylabel="test top-1, %")
