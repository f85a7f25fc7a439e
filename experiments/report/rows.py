"""What ``report`` compares: finished runs, read and grouped into rows."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.report.labels import Setting, labels, settings
from experiments.run.errors import RunError
from experiments.run.folder import CONFIG, SUMMARY

_PROBE = re.compile(r"((?:random/)?(?:probe_lin\d+|knn_[^/]+))/block\d+/gap/top1")


TIMES = ("images_per_second", "seconds")
"""Figures that depend on the machine."""


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but their seed.

    Attributes:
        summaries: their ``summary.json`` files.
        base: the row of Backprop (or of one block without groups; of a method that predicts no class, its own of
            one block) with the same network, data and batch size, if there is one: of several the one with as many
            epochs (layer-wise training has them per block) and most settings in common.
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
        """Mean over the base's mean; of times None if they were taken on another device or with other threads."""
        if self.base is None or (key in TIMES and self._devices() != self.base._devices()):
            return None
        own, base = self.mean(key), self.base.mean(key)
        return own / base if own is not None and base else None

    def _devices(self) -> set[str | None]:
        return {summary.get("device") for summary in self.summaries}

    def blocks(self, split: str = "test") -> list[float]:
        """Mean top-1 of each block on a split, in %; of ``train_set`` if the runs measured it."""
        names = (f"{split}/block{k}/top1" for k in range(1, self.first["num_blocks"] + 1))
        return [100 * value for value in map(self.mean, names) if value is not None]

    def when_done(self) -> list[float]:
        """Mean validation top-1 of each block when it had learned, in %, if later its head was thrown away."""
        return self.blocks("val") if self.in_turn and len(self.blocks()) < self.nodes[0] else []

    @property
    def in_turn(self) -> bool:
        """Whether blocks learn one after the other."""
        return self.first["settings"].get("model.init_args.epochs_per_block", "None") != "None"

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
    return summary | {"settings": settings(known)}


def group(summaries: Sequence[dict[str, Any]]) -> list[Row]:
    """One row per setting, its seeds together (each once), Backprop first, then by method, G and K."""
    seeds: dict[Setting, dict[int, dict[str, Any]]] = {}
    for summary in summaries:  # of the same run twice, the last
        seeds.setdefault(Setting.of(summary), {})[summary["seed"]] = summary
    found = {key: list(runs.values()) for key, runs in seeds.items()}
    rows = []
    for key, runs in found.items():
        alike = [one for one in found if one[:3] == key[:3]]
        rows.append(Row(runs, _base(key, found), labels(alike)[key]))
    return sorted(rows, key=lambda r: (r.first["network"], r.first["dataset"], r.method, *reversed(r.nodes)))


def _base(key: Setting, found: Mapping[Setting, Sequence[dict[str, Any]]]) -> Row | None:
    """What a row is compared with; one block without groups is backpropagation whatever the method is called."""
    whole = [other for other in found if (other.problem, other.nodes) == (key.problem, (1, 1))]
    # What keeps no activations for a backward pass is no backpropagation.
    whole = [other for other in whole if all(s.get("peak_activation_bytes") != 0 for s in found[other])]
    if not any("test/top1" in summary["metrics"] for summary in found[key]):
        whole = [other for other in whole if other.method == key.method]  # learns no labels: another task

    def closeness(other: Setting) -> tuple[bool, bool, int]:
        differences = len(other.options ^ key.options)  # another loss, say
        return other.method == "Backprop", other.epochs == key.epochs, -differences

    base = max(whole, key=closeness, default=key)  # the closest to a base is itself
    return Row(found[base]) if base != key else None
