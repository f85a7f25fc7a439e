"""A configuration as a flat mapping: what tells runs apart, and what a resumed run changed."""

from collections.abc import Iterator, Mapping
from typing import Any

_NO_SETTINGS = ("seed", "root", "cache", "folder", "download", "num_workers", "num_blocks", "num_groups")
"""What changes no result, or is told apart from the settings."""


def settings(parts: Mapping[str, Any]) -> dict[str, str]:
    """Dotted path → text of everything in ``{"model": {"class_path": …}, …}`` that may change a result."""
    return {path: str(value) for path, value in _leaves(parts) if path.rpartition(".")[2] not in _NO_SETTINGS}


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree
