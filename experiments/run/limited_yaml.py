"""YAML, read within limits: a file of a few lines can be endless to whoever walks through it."""

from pathlib import Path
from typing import Any

import yaml

from experiments.run.errors import RunError

_DEEPEST, _MOST = 100, 100_000


def limited(value: Any) -> Any:
    """The value of a YAML text, if it can be walked through.

    Raises:
        yaml.YAMLError: it contains itself, is nested too deeply, or repeats parts of itself too often.
    """
    rest = [(value, 0)]
    for _ in range(_MOST):
        if not rest:
            return value
        part, depth = rest.pop()
        if depth > _DEEPEST:
            break
        inner = [*part, *part.values()] if isinstance(part, dict) else part if isinstance(part, list) else ()
        rest += [(one, depth + 1) for one in inner]
    raise yaml.YAMLError(f"it is nested more than {_DEEPEST} deep, or holds more than {_MOST:,} values")


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        RunError: it is none, or no text in UTF-8, or goes beyond the limits.
    """
    try:
        return limited(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as fault:
        raise RunError(f"{path} cannot be read as YAML: {' '.join(str(fault).split())}.") from fault
