"""The pictures of hidden layers: every metric against depth, and against depth and time."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from experiments.probing.hidden_layers import LayerMetrics
from experiments.run.files import METRICS, OBSERVATIONS_OVER_TIME


@dataclass(frozen=True)
class Panel:
    """What one panel shows: metrics with the style of their line, or the name of their colours; shares in percent."""

    title: str
    metrics: Mapping[str, str]
    percent: bool = False
    log: bool = False
    from_zero: bool = False


def _panels(probe: str) -> list[Panel]:
    def both(metric: str) -> dict[str, str]:
        return {f"{metric}_test": "-", f"{metric}_train": "--"}

    gaps = {f"{probe}_gap": "-", "ncm_gap": ":"}
    return [
        Panel("Linear probe, top-1 %", both(probe), percent=True),
        Panel("Nearest class mean, top-1 %", both("ncm"), percent=True),
        Panel("Train − test gap, points\n(solid: linear probe, dotted: class mean)", gaps, percent=True),
        Panel("Separation fuzziness D\n(lower: classes lie further apart)", both("fuzziness"), log=True),
        Panel("Effective rank", both("rank")),
        Panel("Linear CKA with the reference", both("cka")),
        Panel("Collapse index, points\n(linear probe: reference − run)", {"collapse_test": "-"}, percent=True),
        Panel(
            "Recoverable accuracy, top-1 %\n(all behind a block trained anew)", {"recoverable_test": "s-"}, percent=True
        ),
        Panel(
            "Redundant training images, %\n(a head gives their class p > 0.99)",
            {"confident_train": f"{_HEAD_MARK}--"},
            percent=True,
            from_zero=True,
        ),
    ]


Networks = Sequence[tuple[str, LayerMetrics, LayerMetrics]]
"""Of each network its name, the metrics of its layers and those of its heads."""


def draw_depth(networks: Networks, probe: str, title: str, path: Path) -> None:
    """One panel per metric against depth: solid lines are test images, dashed ones training images.

    The layers of a run and of its reference, if there is one, are called the same; ``probe`` is what metrics call the
    linear probe.
    """
    known = {name for _, *parts in networks for part in parts for found in part.values() for name in found}
    panels = [panel for panel in _panels(probe) if known & set(panel.metrics)]
    layers, per_row = list(networks[0][1]), -(-len(panels) // 2)
    figure = Figure(figsize=(4.2 * per_row, 7), layout="constrained")
    axes = figure.subplots(2, per_row)
    for ax, panel in zip(axes.flat, panels, strict=False):
        for (_, *parts), colour in zip(networks, _COLOURS, strict=False):
            for part in parts:
                _draw_lines(ax, panel, part, layers, colour)
        _finish(ax, panel, layers)
    lines = _legend(networks)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    if len(panels) < axes.size:
        axes.flat[-1].legend(handles=lines, loc="center left", frameon=False)
    else:
        figure.legend(handles=lines, loc="outside lower center", ncols=-(-len(lines) // 2), frameon=False)
    figure.suptitle(f"Hidden layers: {title}")
    figure.savefig(path, dpi=150)


_COLOURS = ("tab:blue", "tab:orange")
_FINAL, _HEAD_MARK, _FINAL_MARK = "final", "o", "D"


def _legend(networks: Networks) -> list[Line2D]:
    """What every mark stands for."""
    name, layers, _ = networks[0]
    heads = {head for *_, found in networks for head in found}
    marks: dict[str, dict[str, Any]] = {
        who: {"color": colour} for (who, *_), colour in zip(networks, _COLOURS, strict=False)
    }
    marks |= {"test images": {"linestyle": "-"}, "training images": {"linestyle": "--"}}
    if heads - {_FINAL}:
        marks["head of a block"] = {"linestyle": "", "marker": _HEAD_MARK}
    if _FINAL in heads:
        marks["head of the whole network"] = {"linestyle": "", "marker": _FINAL_MARK}
    if _borders(list(layers)):
        marks[f"blocks of {name}, numbered on top"] = {"color": "0.8"}
    return [Line2D([], [], label=label, **{"color": "black"} | style) for label, style in marks.items()]


def _draw_lines(ax: Axes, panel: Panel, metrics: LayerMetrics, layers: Sequence[str], colour: str) -> None:
    for name, style in panel.metrics.items():
        positions = np.array([_position(place, layers) for place, found in metrics.items() if name in found])
        values = np.array([found[name] for found in metrics.values() if name in found]) * (100 if panel.percent else 1)
        ax.plot(positions, values, style, color=colour)
        behind = positions > len(layers) - 1
        ax.plot(positions[behind], values[behind], _FINAL_MARK, color=colour, markersize=8)


def _position(place: str, layers: Sequence[str]) -> float:
    """Where on the axis a layer is; a head is at the last layer of its block, one on the whole network behind all."""
    within = [i for i, layer in enumerate(layers) if layer == place or layer.startswith(f"{place}/")]
    return within[-1] if within else len(layers) - 0.7


def _finish(ax: Axes, panel: Panel, layers: Sequence[str]) -> None:
    ax.set_title(panel.title, fontsize=10, pad=14)
    ax.set_yscale("log" if panel.log else "linear")
    if panel.from_zero:
        ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
    _plain_numbers(ax, panel.log)
    every = -(-len(layers) // 16)  # at most 16 names have room
    names = [layer.rpartition("/")[2] for layer in layers]
    ax.set_xticks(range(0, len(layers), every), names[::every], rotation=45, ha="right", rotation_mode="anchor", size=8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlim(-0.5, len(layers) - 0.5)
    borders = _borders(layers)
    for border in borders:
        ax.axvline(border, color="0.8", linewidth=0.8, zorder=0)
    for k, (start, stop) in enumerate(pairwise([-0.5, *borders, len(layers) - 0.5]), start=1):
        if borders:
            ax.text(
                (start + stop) / 2, 1.01, str(k), transform=ax.get_xaxis_transform(), ha="center", color="0.5", size=8
            )


def _plain_numbers(ax: Axes, log: bool) -> None:
    """1, 2, 5, 10 instead of powers of ten."""
    if log:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("")


def _borders(layers: Sequence[str]) -> list[float]:
    """Positions between layers of different blocks."""
    blocks = [layer.partition("/")[0] for layer in layers]
    return [i - 0.5 for i in range(1, len(blocks)) if blocks[i] != blocks[i - 1]]


_OVER_TIME = (
    Panel("Nearest class mean,\nvalidation top-1 %", {"ncm_val": "viridis"}, percent=True),
    Panel("Nearest class mean,\ntrain − validation gap, points", {"ncm_gap": "magma"}, percent=True),
    Panel("Separation fuzziness D,\nvalidation", {"fuzziness_val": "viridis_r"}, log=True),
    Panel("Effective rank,\nvalidation", {"rank_val": "viridis"}),
    Panel("Redundant training images\n(p > 0.99), %", {"confident_train": "viridis"}, percent=True),
)


def draw_over_time(folder: Path, places: Sequence[str]) -> Path | None:
    """Every metric against depth and time, from the ``metrics.csv`` of a run with the callback ``HiddenLayers``.

    Places are the layers, in the order of the network, and the heads. Without observations there is no picture.
    """
    epochs = _epochs(folder / METRICS)
    maps = [(panel, rows) for panel in _OVER_TIME if (rows := _rows(panel, epochs, places))]
    if not maps:
        return None
    height = 1.8 + 0.25 * max(8, *(len(rows) for _, rows in maps))
    figure = Figure(figsize=(3.6 * len(maps), height), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for ax, (panel, rows) in zip(axes, maps, strict=True):
        _draw_map(ax, panel, rows, list(epochs))
    axes[0].set_ylabel("depth →")
    figure.suptitle(f"Hidden layers while learning: {folder.name}")
    figure.savefig(folder / OBSERVATIONS_OVER_TIME, dpi=150)
    return folder / OBSERVATIONS_OVER_TIME


def _epochs(metrics: Path) -> dict[int, dict[str, float]]:
    """Epoch, from 1 → logged name → value, of the epochs after which layers were observed."""
    epochs: dict[int, dict[str, float]] = {}
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            if found := {name: float(v) for name, v in row.items() if name.startswith("observe/") and v}:
                epochs[int(row["epoch"]) + 1] = found
    return epochs


def _rows(panel: Panel, epochs: Mapping[int, Mapping[str, float]], places: Sequence[str]) -> dict[str, list[float]]:
    """Place → the panel's metric after every epoch, of the places that ever have it."""
    [metric] = panel.metrics
    rows = {place: [found.get(f"observe/{place}/{metric}", np.nan) for found in epochs.values()] for place in places}
    return {place: values for place, values in rows.items() if not np.isnan(values).all()}


def _draw_map(ax: Axes, panel: Panel, rows: Mapping[str, Sequence[float]], epochs: Sequence[int]) -> None:
    [colours] = panel.metrics.values()
    norm = LogNorm() if panel.log else None
    values = np.array([*rows.values()]) * (100 if panel.percent else 1)
    image = ax.imshow(values, cmap=colours, norm=norm, origin="lower", aspect="auto", interpolation="nearest")
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    _plain_numbers(bar.ax, panel.log)
    bar.ax.tick_params(labelsize=8)
    every_row, every_epoch = -(-len(rows) // 30), -(-len(epochs) // 6)
    names = [row.rpartition("/")[2] for row in rows]
    ax.set_yticks(range(0, len(rows), every_row), names[::every_row], size=8)
    ax.set_xticks(range(0, len(epochs), every_epoch), list(map(str, epochs[::every_epoch])), size=8)
    ax.set_title(panel.title, fontsize=10)
    ax.set_xlabel("epoch")
    for border in _borders(list(rows)):
        ax.axhline(border, color="white", linewidth=1.5)
