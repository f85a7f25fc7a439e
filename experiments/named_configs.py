"""Configs by name: ``decoupled_greedy/digits`` means the same in every folder, also of an installed package."""

import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from experiments.run.errors import RunError

CONFIGS = Path(__file__).parent / "configs"
"""Those that come along."""

_OPTION = "--config"


def config_path(name: str, folder: Path = Path()) -> Path:
    """The YAML that is meant: one's own file, else one that comes along; both with or without ``.yaml``.

    Args:
        name: a path; of one that comes along that below ``experiments/configs``.
        folder: what the path of one's own file is relative to.

    Returns:
        Its path; where there is none, that of one's own.
    """
    paths = [place / file for place in (folder, CONFIGS) for file in (name, f"{name}.yaml")]
    return next(filter(os.path.isfile, paths), paths[0])  # Path's own raises where a name is too long for a file


def probe_config(method: type) -> str | None:
    """Name of the probe's config that comes along for a method, or for one that it is made of; or None."""
    names = [f"probe/{kind.__module__.rpartition('.')[2]}" for kind in method.__mro__]
    return next((name for name in names if (CONFIGS / f"{name}.yaml").is_file()), None)


def config_file(name: str) -> Path:
    """The same, which is there.

    Raises:
        RunError: it is not; near names are given.
    """
    if os.path.isfile(path := config_path(name)):
        return path
    known = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in sorted(CONFIGS.rglob("*.yaml"))]
    asked = name.removesuffix(".yaml")
    near = [one for one in known if Path(one).name == asked] or get_close_matches(asked, known)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    raise RunError(f"There is no config {name!r}: neither a file nor one that comes along has this name.{meant}")


def with_config_files(args: Sequence[str]) -> Iterator[str]:
    """A command line with the file in place of every config's name."""
    for before, arg in pairwise(["", *args]):
        option, equals, name = arg.partition("=")
        if before in (_OPTION, "-c"):
            yield str(config_file(arg))
        elif option == _OPTION and equals:
            yield f"{_OPTION}={config_file(name)}"
        else:
            yield arg
