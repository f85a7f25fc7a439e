"""LightningDataModules: one face for every data set. They know nothing of models."""

import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import Any


@cache
def _classes() -> dict[str, Any]:
    files = [import_module(file.name) for file in pkgutil.walk_packages(__path__, f"{__name__}.")]
    return {
        name: one
        for file in files
        for name, one in vars(file).items()
        if isinstance(one, type) and one.__module__ == file.__name__
    }


def __getattr__(name: str) -> Any:
    """A class by its name alone, from whichever file it is in: no list of them is kept by hand."""
    if not name[0].isupper() or name not in _classes():
        raise AttributeError(f"datamodules has no {name!r}")
    return _classes()[name]


def __dir__() -> Iterable[str]:
    return sorted(_classes())
