"""Classes of a package by their names alone, from whichever file they are in: no list of them is kept by hand."""

import pkgutil
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any


def by_name(
    package: str, path: Iterable[str], apart: str = " "
) -> tuple[Callable[[str], Any], Callable[[], Iterable[str]]]:
    """What a package has as its ``__getattr__`` and ``__dir__``: ``package.Class`` is found in the package's files.

    Args:
        package: its ``__name__``.
        path: its ``__path__``.
        apart: prefix of files that are left out.
    """

    @cache
    def classes() -> dict[str, Any]:
        found = {}
        for file in pkgutil.walk_packages(path, f"{package}."):
            if not file.name.startswith(apart):
                for key, one in vars(import_module(file.name)).items():
                    if isinstance(one, type) and one.__module__ == file.name:
                        found[key] = one
        return found

    def find(name: str) -> Any:
        if not name[0].isupper() or name not in classes():
            raise AttributeError(f"{package} has no {name!r}")
        return classes()[name]

    return find, lambda: sorted(classes())
