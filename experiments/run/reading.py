"""What commands read of a run besides its checkpoints: its summary and its configuration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from experiments.run.errors import RunError
from models.saved import Parts, all_of, is_count, is_number, misfit


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_measured(value: object) -> bool:
    return value is None or is_number(value)


def _is_part(value: object) -> bool:
    """Whether something is a part of a configuration, whose class may be missing, or none."""
    return value is None or not misfit(value, {}, {"class_path": _is_text})


def _are_callbacks(value: object) -> bool:
    several = value if isinstance(value, list) else [value] if value else []
    return not any(misfit(one, {"class_path": _is_text}, {}) for one in several)


_MEASURED = ("seconds", "images_per_second", "peak_activation_bytes")
_MACS = ("slowest_node_macs", "inference_macs", "ensemble_macs", "step_flops")
_NEEDED: Parts = {
    **dict.fromkeys(("method", "network", "dataset"), _is_text),
    **dict.fromkeys(("seed", "num_blocks", "batch_size", "epochs"), is_count),
    "metrics": all_of(is_number),
}
_POSSIBLE: Parts = {
    **dict.fromkeys((*_MEASURED, *_MACS), _is_measured),
    "num_groups": is_count,
    "global_step": is_count,
    "device": _is_text,
    "level": lambda value: value is None or _is_text(value),
    "callbacks": _are_callbacks,
}
_CONFIG: Parts = {
    "model": _is_part,
    "data": _is_part,
    "trainer": lambda part: part is None or not misfit(part, {}, {"callbacks": _are_callbacks}),
}


def read_summary(file: Path) -> dict[str, Any]:
    """What a ``summary.json`` holds.

    Raises:
        RunError: it is damaged, or no summary.
    """
    return _read(file, json.loads, _NEEDED, _POSSIBLE)


def read_config(file: Path) -> dict[str, Any]:
    """What a ``config.yaml`` holds, which may lack anything.

    Raises:
        RunError: it is damaged, or no configuration.
    """
    return _read(file, yaml.safe_load, {}, _CONFIG)


def _read(file: Path, parse: Callable[[str], Any], needed: Parts, possible: Parts) -> dict[str, Any]:
    content: dict[str, Any] = {}
    try:
        content = parse(file.read_text(encoding="utf-8"))
        fault = misfit(content, needed, possible)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        fault = str(error).partition("\n")[0]
    if fault:
        raise RunError(f"{file} is damaged ({fault}). Mend or remove it: fit --ckpt_path last writes it anew.")
    return content
