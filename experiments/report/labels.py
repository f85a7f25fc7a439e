"""What tells the rows of a report apart: the settings of its runs, and names made of those that differ."""

import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

_NO_SETTINGS = ("seed", "root", "folder", "download", "num_workers", "num_blocks", "num_groups")
"""What changes no result, or has a column of its own."""

WATCHERS = (
    "DecisionBoundary",
    "Entropy",
    "HiddenLayers",
    "OnlineProbe",
    "OutputSignal",
    "TrainingAccuracy",
)
"""Callbacks of ours that a config may name and that change no result."""

_CLASS, _ARGUMENTS = ".class_path", ".init_args."


def settings(config: Mapping[str, Any]) -> dict[str, str]:
    """A run's configuration as far as it may change a result: dotted path → text.

    Args:
        config: what its ``config.yaml`` holds; may lack anything.
    """
    trainer = config.get("trainer") or {}
    parts = {part: config.get(part) for part in ("model", "data")} | {"strategy": trainer.get("strategy")}
    callbacks = trainer.get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if callback["class_path"].rpartition(".")[2] not in WATCHERS:
            parts[callback["class_path"]] = callback
    return {name: text for name, text in _flat(parts) if name.rpartition(".")[2] not in _NO_SETTINGS}


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested dicts as (dotted path, text)."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(tree)


class Setting(NamedTuple):
    """What runs of one row have in common."""

    problem: tuple[Any, ...]
    epochs: int
    method: str
    nodes: tuple[int, int]
    options: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Self:
        """The setting of a run, by its summary and the :func:`settings` in it."""
        problem = tuple(summary[name] for name in ("network", "dataset", "batch_size"))
        nodes = summary["num_blocks"], summary["num_groups"]
        return cls(problem, summary["epochs"], summary["method"], nodes, frozenset(summary["settings"].items()))


_MANY = 3
"""More differing options than this do not fit a row's name."""


def labels(alike: Sequence[Setting]) -> dict[Setting, str]:
    """What tells settings of one problem and method apart.

    Named are the options in which those that have them, in the same class, differ, and the classes that only some have:
    the options of such a class (the temperature of one loss among several) go without saying. Where that leaves two
    alike, all that some lack is named too; where many options differ, the most common value of each goes without
    saying.

    Args:
        alike: the settings of one problem and method.
    """
    known = {one: dict(one.options) for one in alike}
    names = {name for options in known.values() for name in options}
    differ = {name for name in names if _differs(name, known.values())}
    lacked = {name for name in names if any(name not in options for options in known.values())}
    classes = {name for name in lacked if name.endswith(_CLASS) and not differ.intersection(_classes_around(name))}

    def label(one: Setting, told: set[str]) -> str:
        if len(told) > _MANY:
            told = {n for n in told if known[one].get(n) != statistics.mode(known[other].get(n) for other in alike)}
        own = [name for name in sorted(told) if name in known[one]]
        return ", ".join(_said(name, known[one][name], names) for name in own)

    brief = {one: label(one, differ | classes) for one in alike}
    unclear = len({(one.nodes, text) for one, text in brief.items()}) < len(brief)
    return {one: label(one, differ | lacked) for one in alike} if unclear else brief


def _differs(name: str, known: Iterable[Mapping[str, str]]) -> bool:
    """Whether an option has several values where the classes that it belongs to are the same."""
    values: dict[tuple[str | None, ...], set[str]] = {}
    for options in known:
        if name in options:
            classes = tuple(options.get(around) for around in _classes_around(name))
            values.setdefault(classes, set()).add(options[name])
    return any(len(found) > 1 for found in values.values())


def _classes_around(name: str) -> Iterator[str]:
    """The class that ``hook.init_args.coder.class_path`` is an argument of, ``hook.class_path``, and so on outwards."""
    while _ARGUMENTS in name:
        name = name.rpartition(_ARGUMENTS)[0]
        yield name + _CLASS


def _said(name: str, value: str, names: Collection[str]) -> str:
    """A setting by the last part of its path, or two where others end alike; a class by its own name alone."""
    path, _, last = name.replace(_ARGUMENTS, ".").rpartition(".")
    if name.endswith(_CLASS):
        return value.rpartition(".")[2]
    unclear = last.isdigit() or sum(other.rpartition(".")[2] == last for other in names) > 1
    return f"{path.rpartition('.')[2]}.{last} {value}" if unclear else f"{last} {value}"
