"""What ``report`` compares: finished runs, those together that differ in nothing but their seed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from experiments.report.labels import labels

PROBLEM = ["network", "dataset", "batch_size"]
METHOD = [*PROBLEM, "epochs", "method"]
SETTING = [*METHOD, "num_blocks", "num_groups", "settings"]
"""What is the same in rows that are compared, in variants of a method, and in the runs of a row."""

TIMES = ["images_per_second", "seconds"]
"""Metrics that depend on the machine."""

_PROBE = re.compile(
    r"((?:random/|reestimated/)?(?:probe_lin\d+(?:_(?!labels)[^/_]+)*|knn_[^/]+|association))/block\d+/(gap|outputs)/top1"
)


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seed.

    Attributes:
        runs: a line each.
        base: the row of Backprop (or of one block without groups; of a method that predicts no class, its own of
            one block) with the same network, data and batch size, if there is one: of several the one with as many
            epochs (layer-wise training has them per block) and most settings in common.
        variant: settings in which it differs from other rows of the same method and problem.
    """

    runs: pd.DataFrame
    base: "Row | None" = None
    variant: str = ""

    @property
    def first(self) -> pd.Series:
        """Any of the runs: what they share."""
        return self.runs.iloc[0]

    @property
    def method(self) -> str:
        """Method, and in brackets what sets it apart from other rows of the same method."""
        return self.first["method"] + (f" ({self.variant})" if self.variant else "")

    @property
    def nodes(self) -> tuple[int, int]:
        """(K, G)."""
        return self.first["num_blocks"], self.first["num_groups"]

    @cached_property
    def mean(self) -> pd.Series:
        """Metric → mean over the seeds; only what was measured."""
        return self.runs.mean(numeric_only=True).dropna()

    @cached_property
    def spread(self) -> pd.Series:
        """Metric → standard deviation over the seeds; 0 of one seed."""
        return self.runs.std(numeric_only=True).fillna(0)

    @cached_property
    def ratio(self) -> pd.Series:
        """Metric → mean over the base's; without times if they were taken on another device or with other threads."""
        if self.base is None:
            return pd.Series(dtype=float)
        alike = set(self.runs["device"]) == set(self.base.runs["device"])
        return (self.mean / self.base.mean).dropna().drop([] if alike else TIMES, errors="ignore")

    def blocks(self, metric: str = "test/{}/top1") -> dict[int, float]:
        """Number of a block → mean of its metric, in %; of blocks of which it was measured."""
        names = {k: metric.format(f"block{k}") for k in range(1, self.nodes[0] + 1)}
        return {k: 100 * self.mean[name] for k, name in names.items() if name in self.mean}

    def when_done(self) -> dict[int, float]:
        """Validation top-1 of each block when it had learned, in %, if later its head was thrown away."""
        return self.blocks("val/{}/top1") if self.in_turn and len(self.blocks()) < self.nodes[0] else {}

    @property
    def in_turn(self) -> bool:
        """Whether blocks learn one after the other."""
        return dict(self.first["settings"]).get("model.init_args.epochs_per_block", "None") != "None"

    @cached_property
    def probes(self) -> dict[str, dict[int, float]]:
        """Protocol (``probe_lin100``, ``knn_k200_t0.1``) → test top-1, in %, of each block that was probed so."""
        # Of a block's outputs, if it has such, in place of what they read.
        kinds = {found[1]: found[2] for name in sorted(self.mean.index) if (found := _PROBE.match(name))}
        return {protocol: self.blocks(f"{protocol}/{{}}/{kind}/top1") for protocol, kind in kinds.items()}

    def linear_probe(self) -> dict[int, float]:
        """That of the longest linear probe; empty if there is none."""
        epochs = {name: int(found[1]) for name in self.probes if (found := re.match(r"probe_lin(\d+)", name))}
        return self.probes[max(epochs, key=epochs.__getitem__)] if epochs else {}


def group(runs: pd.DataFrame) -> list[Row]:
    """One row per setting, by method, G and K: its seeds together, each once, of which the last line counts."""
    once = runs.drop_duplicates([*SETTING, "seed"], keep="last")
    rows = [Row(alike) for _, alike in once.groupby(SETTING, sort=False)]
    named = [replace(row, base=_base(row, rows), variant=_variant(row, rows)) for row in rows]
    return sorted(named, key=lambda row: (*row.first[["network", "dataset"]], row.method, *reversed(row.nodes)))


def _variant(row: Row, rows: Sequence[Row]) -> str:
    variants = [(other.nodes, other.first["settings"]) for other in _sharing(METHOD, row, rows)]
    return labels(variants)[row.nodes, row.first["settings"]]


def _base(row: Row, rows: Sequence[Row]) -> Row | None:
    """What a row is compared with; one block without groups is backpropagation whatever the method is called."""
    whole = [other for other in _sharing(PROBLEM, row, rows) if other.nodes == (1, 1)]
    # What keeps no activations for a backward pass is no backpropagation.
    whole = [other for other in whole if all(other.runs["peak_activation_bytes"] != 0)]
    if "test/top1" not in row.mean:  # learns no labels: another task
        whole = _sharing(["method"], row, whole)

    def closeness(other: Row) -> tuple[bool, bool, int]:
        differences = len(other.first["settings"] ^ row.first["settings"])  # another loss, say
        return other.first["method"] == "Backprop", other.first["epochs"] == row.first["epochs"], -differences

    base = max(whole, key=closeness, default=row)  # the closest to a base is itself
    return None if base is row else base


def _sharing(columns: list[str], row: Row, rows: Sequence[Row]) -> list[Row]:
    return [other for other in rows if all(other.first[columns] == row.first[columns])]
