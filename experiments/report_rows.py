"""What ``report`` compares: finished runs, read, grouped into rows, and written out as cells."""

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from experiments.errors import RunError
from experiments.run_folder import CONFIG, SUMMARY

_PROBE = re.compile(r"((?:random/)?(?:probe_lin\d+|knn_[^/]+))/block\d+/gap/top1")


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seed.

    Attributes:
        summaries: their ``summary.json`` files.
        base: the row of Backprop (or of one block without groups; of a method that predicts no class, its own of
            one block) with the same network, data and batch size, if there is one.
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
        """Mean over the base's mean."""
        own, base = self.mean(key), self.base.mean(key) if self.base else None
        return own / base if own is not None and base else None

    def blocks(self, split: str = "test") -> list[float]:
        """Mean top-1 of each block on a split, in %; of ``train_set`` if the runs measured it."""
        names = (f"{split}/block{k}/top1" for k in range(1, self.first["num_blocks"] + 1))
        return [100 * value for value in map(self.mean, names) if value is not None]

    def probes(self) -> set[str]:
        """Protocols by which the blocks' features were probed: ``probe_lin100``, ``knn_k200_t0.1``."""
        return {found[1] for summary in self.summaries for name in summary["metrics"] if (found := _PROBE.match(name))}

    def probed(self, protocol: str) -> dict[int, float]:
        """Mean test top-1, in %, of each block that was probed so."""
        figures = {k: self.mean(f"{protocol}/block{k}/gap/top1") for k in range(1, self.first["num_blocks"] + 1)}
        return {k: 100 * value for k, value in figures.items() if value is not None}

    def linear_probe(self) -> dict[int, float]:
        """:meth:`probed` of the longest linear probe; empty if there is none."""
        linear = [name for name in self.probes() if name.startswith("probe_lin")]
        return self.probed(max(linear, key=lambda name: int(name.removeprefix("probe_lin")))) if linear else {}


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
    trainer = known.get("trainer") or {}
    parts = {part: known.get(part) for part in ("model", "data")} | {"strategy": trainer.get("strategy")}
    parts |= {one["class_path"]: one["init_args"] for one in trainer.get("callbacks") or () if one.get("init_args")}
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
    """One row per setting, its seeds together (each once), Backprop first, then by method, G and K."""
    seeds: dict[_Setting, dict[int, dict[str, Any]]] = {}
    for summary in summaries:  # of the same run twice, the last
        seeds.setdefault(_Setting.of(summary), {})[summary["seed"]] = summary
    settings = {key: list(runs.values()) for key, runs in seeds.items()}
    rows = []
    for key, runs in settings.items():
        alike = [one for one in settings if (one.problem, one.method) == (key.problem, key.method)]
        rows.append(Row(runs, _base(key, settings), _variants(alike)[key]))
    return sorted(rows, key=lambda r: (r.first["network"], r.first["dataset"], r.method, *reversed(r.nodes)))


def _base(key: _Setting, settings: Mapping[_Setting, Sequence[dict[str, Any]]]) -> Row | None:
    """What a row is compared with; one block without groups is backpropagation whatever the method is called."""
    whole = [other for other in settings if (other.problem, other.nodes) == (key.problem, (1, 1))]
    # What keeps no activations for a backward pass is no backpropagation.
    whole = [other for other in whole if all(s.get("peak_activation_bytes") != 0 for s in settings[other])]
    if not any("test/top1" in summary["metrics"] for summary in settings[key]):
        whole = [other for other in whole if other.method == key.method]  # learns no labels: another task
    # Of several the one that shares most settings: the same loss, say.
    base = max(whole, key=lambda other: (other.method == "Backprop", len(other.options & key.options)), default=None)
    return Row(settings[base]) if base else None


_MANY = 5
"""More differing options than this do not fit a row's name."""


def _variants(alike: Sequence[_Setting]) -> dict[_Setting, str]:
    """What tells settings of one problem and method apart.

    Named are the options in which those that have them differ: what only one class has (the temperature of one
    loss among several) goes without saying. Where that leaves two alike, all that some lack is named too; where
    many options differ, the most common value of each goes without saying.
    """
    known = {one: dict(one.options) for one in alike}
    names = {name for options in known.values() for name in options}
    missing = object()

    def label(one: _Setting, absent: tuple[object, ...]) -> str:
        varied = {n for n in names if len({known[other].get(n, missing) for other in alike} - {*absent}) > 1}
        if len(varied) > _MANY:
            varied = {n for n in varied if known[one].get(n) != statistics.mode(known[other].get(n) for other in alike)}
        own = [name for name in sorted(varied) if name in known[one]]
        return ", ".join(_said(name, known[one][name], own) for name in own)

    brief = {one: label(one, absent=(missing,)) for one in alike}
    unclear = len({(one.nodes, text) for one, text in brief.items()}) < len(brief)
    return {one: label(one, absent=()) for one in alike} if unclear else brief


def _said(name: str, value: str, beside: Sequence[str]) -> str:
    """A setting by the last part of its path, or two if another setting ends alike; a class by its own name alone."""
    path, _, last = name.replace(".init_args.", ".").rpartition(".")
    if last == "class_path":
        return value.rpartition(".")[2]
    alike = sum(other.rpartition(".")[2] == last for other in beside) > 1
    return f"{path.rpartition('.')[2]}.{last} {value}" if alike else f"{last} {value}"


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

FIGURES: Mapping[str, Callable[[Row], str]] = {
    "each block, %": lambda row: " ".join(f"{value:.1f}" for value in row.blocks()) or "–",
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
