"""Several processes: strategies, and hooks that average compressed gradients."""

import pkgutil
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """A class or function of this package by its name alone, from whichever file it is in."""
    for file in () if name.startswith("_") else pkgutil.walk_packages(__path__, f"{__name__}."):
        found = vars(import_module(file.name)).get(name)
        if getattr(found, "__module__", None) == file.name:
            return found
    raise AttributeError(f"{__name__} has no {name!r}.")
