"""What ``report`` reads: the summaries and configurations of finished runs."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.run.errors import RunError
from experiments.run.files import CONFIG, SUMMARY, UNFINISHED
from experiments.run.reading import read_config, read_summary
from experiments.run.settings import settings


def find_runs(paths: Sequence[Path]) -> pd.DataFrame:
    """All finished runs in or below the given folders, a line each: :func:`line_of`, and the run's ``folder``.

    Raises:
        RunError: there is no such folder, or none that can be read; others and unfinished ones are left out and named.
    """
    for path in paths:
        if not path.exists():
            raise RunError(f"There is no run {path}.")
        for mark in sorted(path.rglob(UNFINISHED)):
            print(f"left out: {mark.parent} is not finished.", file=sys.stderr)
    files = sorted({file for path in paths for file in path.rglob(SUMMARY)})
    if not files:
        raise RunError(f"No finished run in {', '.join(map(str, paths))}: a finished run has a {SUMMARY}.")
    runs, faults = [], []
    for file in files:
        try:
            runs.append(_read(file))
        except RunError as fault:
            faults.append(fault)
    if not runs:
        raise faults[0]
    for left_out in faults:
        print(f"left out: {left_out}", file=sys.stderr)
    return pd.DataFrame(runs)


def _read(file: Path) -> dict[str, Any]:
    config = file.with_name(CONFIG)
    known = read_config(config) if config.is_file() else {}
    return line_of(read_summary(file), known) | {"folder": file.parent}


def line_of(summary: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's summary, its metrics beside, and ``settings``: its configuration as far as it may change a result.

    Where the summary, as those of old, does not tell which callbacks change training, all in the configuration count
    as such. The configuration may lack anything.
    """
    trainer = config.get("trainer") or {}
    callbacks = summary.get("callbacks", trainer.get("callbacks")) or []
    parts = {"model": config.get("model"), "data": config.get("data"), "strategy": trainer.get("strategy")}
    parts |= {one["class_path"]: one for one in (callbacks if isinstance(callbacks, list) else [callbacks])}
    usual = {"num_groups": 1, "device": "", "peak_activation_bytes": None, "level": None}
    return usual | dict(summary) | summary["metrics"] | {"settings": frozenset(settings(parts).items())}
