"""The columns of ``report``: what a row says of itself, as text."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd

from experiments.report.rows import Row
from experiments.run.tables import NOTHING

Columns = Mapping[str, Callable[[Row], str]]
"""Heading → cell of a row."""


def _percent(row: Row, metric: str) -> str:
    if metric not in row.mean:
        return NOTHING
    spread = f" ± {100 * row.spread[metric]:.2f}" if row.runs[metric].count() > 1 else ""
    return f"{100 * row.mean[metric]:.2f}{spread}"


def _percents(blocks: Mapping[int, float]) -> str:
    return " ".join(f"{value:.1f}" for value in blocks.values()) or NOTHING


def _decimals(row: Row, metric: str, digits: int) -> str:
    return f"{row.mean[metric]:,.{digits}f}" if metric in row.mean else NOTHING


def _quantity(row: Row, metric: str, unit: float) -> str:
    value, ratio = row.mean.get(metric), row.ratio.get(metric)
    if not value:  # closed-form fitting keeps no activations
        return NOTHING
    return f"{value / unit:,.{1 if value < 1000 * unit else 0}f}" + (f" (×{ratio:.2f})" if ratio is not None else "")


_SETTINGS: Columns = {
    "network": lambda row: row.first["network"],
    "data": lambda row: row.first["dataset"],
    "epochs": lambda row: str(row.first["epochs"]),
    "batch": lambda row: str(row.first["batch_size"]),
    "seeds": lambda row: str(len(row.runs)),
}
"""Columns that are left out of the table, and named in its title, where all rows agree."""

_PREDICTIONS: Columns = {
    "each block, %": lambda row: _percents(row.blocks()),
    "each block when it was done, validation images, %": lambda row: _percents(row.when_done()),
    "each block, training images, %": lambda row: _percents(row.blocks("train_set/{}/top1")),
    "test top-1, %": lambda row: _percent(row, "test/top1"),
    "over views, %": lambda row: _percent(row, "test/views/top1"),
    "ensemble, %": lambda row: _percent(row, "test/ensemble/top1"),
    "one group, %": lambda row: _percent(row, f"test/block{row.nodes[0]}/group1/top1"),
}

_COSTS: Columns = {
    "level of locality": lambda row: row.first.get("level") or NOTHING,
    "sent, bits/parameter": lambda row: _decimals(row, "communication/bits_per_parameter", 2),
    "MB sent": lambda row: _decimals(row, "communication/megabytes", 1),
    "step FLOPs, × backprop": lambda row: _decimals(row, "step_flops", 2),
    "slowest node, M MACs": lambda row: _quantity(row, "slowest_node_macs", 1e6),
    "images/s": lambda row: _quantity(row, "images_per_second", 1),
    "seconds": lambda row: _quantity(row, "seconds", 1),
    "peak MiB": lambda row: _quantity(row, "peak_activation_bytes", 2**20),
}


def _probes(rows: Sequence[Row]) -> Columns:
    """One column for each way in which features were probed."""
    protocols = sorted({name for row in rows for name in row.probes}, key=lambda name: ("knn" in name, name))
    return {_probe_heading(protocol): partial(_probe_cell, protocol) for protocol in protocols}


_NETWORKS = {"": "", "random": ", before training", "reestimated": ", BatchNorm re-estimated"}
"""What a protocol's name begins with → what it says of the network."""


def _probe_heading(protocol: str) -> str:
    network, _, name = protocol.rpartition("/")
    epochs, *options = name.removeprefix("probe_lin").split("_")
    linear = f"linear probe ({', '.join([f'{epochs} epochs', *options])})"
    knn = f"kNN ({name.removeprefix('knn_').replace('_', ', ')})"
    judge = linear if name.startswith("probe_lin") else knn if name.startswith("knn_") else name
    return f"{judge}{_NETWORKS[network]}, each block, %"


def _probe_cell(protocol: str, row: Row) -> str:
    probed, blocks = row.probes.get(protocol, {}), range(1, row.nodes[0] + 1)
    return " ".join(f"{probed[k]:.1f}" if k in probed else NOTHING for k in blocks) if probed else NOTHING


def cells_of(rows: Sequence[Row]) -> tuple[str, dict[str, pd.DataFrame]]:
    """What the rows share, as one line, and what each says of itself; (×…) is the ratio to the base.

    The tables have a line per row: ``who`` (what tells the rows apart), ``probes``, ``predictions`` and ``costs``;
    columns without any value are left out.
    """
    settings = _filled(_SETTINGS, rows)
    shared = settings.columns[settings.nunique() == 1]
    who = _filled({"method": lambda row: row.method, "K": lambda row: str(row.nodes[0])}, rows)
    if any(row.nodes[1] > 1 for row in rows):
        who["G"] = [str(row.nodes[1]) for row in rows]
    parts = {"who": who.join(settings.drop(columns=shared))}
    for part, columns in {"probes": _probes(rows), "predictions": _PREDICTIONS, "costs": _COSTS}.items():
        cells = _filled(columns, rows)
        parts[part] = cells.loc[:, (cells != NOTHING).any()]
    return ", ".join(f"{heading} {settings[heading][0]}" for heading in shared), parts


def _filled(columns: Columns, rows: Sequence[Row]) -> pd.DataFrame:
    cells = {heading: [cell(row) for row in rows] for heading, cell in columns.items()}
    return pd.DataFrame(cells, index=range(len(rows)))
