"""The columns of ``report``: what a row says of itself, as text."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from experiments.report.rows import Row


def _percent(row: Row, key: str) -> str:
    values = [100 * value for value in row.values(key)]
    if not values:
        return "–"
    spread = f" ± {100 * row.spread(key):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _decimals(row: Row, key: str, digits: int) -> str:
    value = row.mean(key)
    return "–" if value is None else f"{value:,.{digits}f}"


def _quantity(row: Row, key: str, unit: float) -> str:
    value, ratio = row.mean(key), row.ratio(key)
    if not value:  # closed-form fitting keeps no activations
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

FIGURES: Mapping[str, Callable[[Row], str]] = {
    "each block, %": lambda row: " ".join(f"{value:.1f}" for value in row.blocks()) or "–",
    "each block when it was done, validation images, %": lambda row: (
        " ".join(f"{v:.1f}" for v in row.when_done()) or "–"
    ),
    "each block, training images, %": lambda row: " ".join(f"{v:.1f}" for v in row.blocks("train_set")) or "–",
    "test top-1, %": lambda row: _percent(row, "test/top1"),
    "ensemble, %": lambda row: _percent(row, "test/ensemble/top1"),
    "one group, %": lambda row: _percent(row, f"test/block{row.first['num_blocks']}/group1/top1"),
    "sent, bits/parameter": lambda row: _decimals(row, "communication/bits_per_parameter", 2),
    "MB sent": lambda row: _decimals(row, "communication/megabytes", 1),
    "slowest node, M MACs": lambda row: _quantity(row, "slowest_node_macs", 1e6),
    "images/s": lambda row: _quantity(row, "images_per_second", 1),
    "seconds": lambda row: _quantity(row, "seconds", 1),
    "peak MiB": lambda row: _quantity(row, "peak_activation_bytes", 2**20),
}
"""Columns of figures: heading → cell of a row."""

COSTS = ("sent, bits/parameter", "MB sent", "slowest node, M MACs", "images/s", "seconds", "peak MiB")
"""The columns of figures that are costs, not accuracies."""


def figure_columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """Columns of figures: those of every report, and one for each way in which features were probed."""
    protocols = sorted({name for row in rows for name in row.probes()}, key=lambda name: ("knn" in name, name))
    return {_probe_heading(protocol): partial(_probe_cell, protocol) for protocol in protocols} | FIGURES


def _probe_heading(protocol: str) -> str:
    if protocol.startswith("random/"):
        return _probe_heading(protocol.removeprefix("random/")).replace(", each", ", before training, each")
    if protocol.startswith("probe_lin"):
        return f"linear probe ({protocol.removeprefix('probe_lin')} epochs), each block, %"
    return f"kNN ({protocol.removeprefix('knn_').replace('_', ', ')}), each block, %"


def _probe_cell(protocol: str, row: Row) -> str:
    probed = row.probed(protocol)
    blocks = range(1, row.nodes[0] + 1)
    return " ".join(f"{probed[k]:.1f}" if k in probed else "–" for k in blocks) if probed else "–"


def columns(rows: Sequence[Row]) -> tuple[str, dict[str, list[str]]]:
    """What the rows share, as one line, and the table as heading → cells; (×…) is the ratio to the base."""
    settings = {heading: [text(row) for row in rows] for heading, text in _SETTINGS.items()}
    shared = {heading: cells[0] for heading, cells in settings.items() if len(set(cells)) == 1}
    table = {"method": [row.method for row in rows], "K": [str(row.nodes[0]) for row in rows]}
    table |= {"G": [str(row.nodes[1]) for row in rows]} if any(row.nodes[1] > 1 for row in rows) else {}
    table |= {heading: cells for heading, cells in settings.items() if heading not in shared}
    figures = {heading: [text(row) for row in rows] for heading, text in figure_columns(rows).items()}
    table |= {heading: cells for heading, cells in figures.items() if any(cell not in ("–", "") for cell in cells)}
    return ", ".join(f"{heading} {value}" for heading, value in shared.items()), table
