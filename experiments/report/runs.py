"""What ``report`` reads: the summaries and configurations of finished runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from experiments.run.errors import RunError
from experiments.run.files import CONFIG, SUMMARY
from experiments.run.settings import settings


def find_runs(paths: Sequence[Path]) -> pd.DataFrame:
    """All finished runs in or below the given folders, a line each: :func:`line_of`, and the run's ``folder``.

    Raises:
        RunError: there is none, or one cannot be read.
    """
    files = sorted({file for path in paths for file in path.rglob(SUMMARY)})
    if not files:
        raise RunError(f"No finished run in {', '.join(map(str, paths))}: a finished run has a {SUMMARY}.")
    return pd.DataFrame([_read(file) for file in files])


def _read(file: Path) -> dict[str, Any]:
    config = file.with_name(CONFIG)
    try:
        known = yaml.safe_load(config.read_text()) if config.is_file() else {}
        return line_of(json.loads(file.read_text()), known) | {"folder": file.parent}
    except json.JSONDecodeError as fault:
        raise RunError(f"{file} is damaged ({fault}). Run that run again.") from fault
    except yaml.YAMLError as fault:
        raise RunError(f"{config} is damaged. Run that run again.") from fault


def line_of(summary: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's summary, its metrics beside, and ``settings``: its configuration as far as it may change a result.

    Where the summary, as those of old, does not tell which callbacks change training, all in the configuration count
    as such. The configuration may lack anything.
    """
    trainer = config.get("trainer") or {}
    callbacks = summary.get("callbacks", trainer.get("callbacks")) or []
    parts = {"model": config.get("model"), "data": config.get("data"), "strategy": trainer.get("strategy")}
    parts |= {one["class_path"]: one for one in (callbacks if isinstance(callbacks, list) else [callbacks])}
    usual = {"num_groups": 1, "device": "", "peak_activation_bytes": None}
    return usual | dict(summary) | summary["metrics"] | {"settings": frozenset(settings(parts).items())}
