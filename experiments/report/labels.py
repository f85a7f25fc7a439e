"""What tells the rows of a report apart: names made of the settings in which they differ."""

import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

_CLASS, _ARGUMENTS = ".class_path", ".init_args."


Setting = tuple[tuple[int, int], frozenset[tuple[str, str]]]
"""What tells rows of one problem and method apart: (K, G), and options, as (dotted path, text)."""

_MANY = 3
"""More differing options than this do not fit a row's name."""


def labels(alike: Sequence[Setting]) -> dict[Setting, str]:
    """What tells settings of one problem and method apart.

    Named are the options in which those that have them, in the same class, differ, and the classes that only some have:
    the options of such a class (the temperature of one loss among several) go without saying. Where that leaves two
    alike, all that some lack is named too; where many options differ, the most common value of each goes without
    saying.
    """
    known = {one: dict(one[1]) for one in alike}
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
    unclear = len({(nodes, text) for (nodes, _), text in brief.items()}) < len(brief)
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
