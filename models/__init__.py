"""Ways to train a network block by block: the loop (``local_learning.py``), and one file per method in ``methods/``.

Plain torch is in ``networks/``, which imports no Lightning; so names are looked up here when they are asked for.
"""

import pkgutil
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """A class or function of this package by its name alone, from whichever file it is in; not those of networks."""
    for file in () if name.startswith("_") else pkgutil.walk_packages(__path__, f"{__name__}."):
        if file.name.startswith("models.networks"):
            continue
        found = vars(import_module(file.name)).get(name)
        if getattr(found, "__module__", None) == file.name:
            return found
    raise AttributeError(f"{__name__} has no {name!r}.")
