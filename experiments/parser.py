"""A command-line parser that says what is wrong in one sentence."""

import builtins
import os
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from jsonargparse import get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from experiments.run.limited_yaml import limited, read_yaml
from losses.errors import UsageError, causes, where_to_look


class Parser(LightningArgumentParser):
    """LightningCLI's parser, whose faults are one sentence with what may have been meant.

    jsonargparse reads the options of a class by a parser of its own, which is one of these too. Its words are quoted,
    never read: names in them say where the fault is and what was mistyped, the options of those parsers what was meant.
    """

    known: ClassVar[set[str]] = set()
    """Classes, and options of parsers that refused something."""

    refusals: ClassVar[dict[str, Exception | None]] = {}
    """What the parsers of classes said, and why."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the fault and where help is; exit with code 2."""
        self.known.update(option.lstrip("-") for option in self._option_string_actions)
        if not self.exit_on_error:  # the parser of a class: what it raises is caught, and may be tried otherwise
            self.refusals[message.partition("\n")[0]] = ex
            super().error(message, ex)
        print(f"error: {self._fault(message, ex)}", file=sys.stderr)
        command = [*self.prog.replace(" [options]", "").split(), *self.args[:1]]
        options = f"{' '.join(part for part in command if not part.startswith('-'))} --help"
        of_a_class = "--model.help NAME, --data.help NAME, of a part of it: --model.help NAME --model.head.help NAME"
        print(f"All options: {options}; those of a class: {of_a_class}", file=sys.stderr)
        self.exit(2)

    def _fault(self, message: str, error: BaseException | None) -> str:
        if ours := [cause for cause in causes(error) if isinstance(cause, UsageError)]:
            return str(ours[-1])
        if broken := [cause for cause in causes(error) if isinstance(cause, yaml.MarkedYAMLError)]:
            return self._broken_yaml(broken[-1])
        within = [why for words, why in self.refusals.items() if words in message]  # not all is in the chain of causes
        faults = [cause for fault in (error, *within) for cause in causes(fault)]
        lines = [str(fault).partition("\n")[0] for fault in faults]
        place = dict.fromkeys(key for line in lines for key in re.findall(r'"([\w.]+)"', line))
        said = f"--{'.'.join(place)}: {faults[-1]}" if place else message
        said, choices = _in_plain_words(" ".join(said.split()).rstrip("."))
        typed = re.findall(r"\w+", " ".join([*self.args[1:], *re.findall(r"'([\w.]+)'", said)]))  # here, or in a file
        names = re.findall(r"\w+", re.sub(r"\S*/\S*", "", said))  # of no path
        wrong = [name for name in names if name in typed and not hasattr(builtins, name)]
        plain = place and f"{list(place)[-1]}.help" not in self.known  # an option that takes no class: a value is wrong
        meant = (did_you_mean(name, choices if plain else self._candidates(name)) for name in wrong)
        return f"{said}.{next(filter(None, meant), '') or ''.join(map(where_to_look, faults[-1:]))}"

    def _broken_yaml(self, fault: yaml.MarkedYAMLError) -> str:
        """Which file, or value, is no YAML, and where in it."""
        mark, files = fault.problem_mark, [path for arg in self.args for path in arg.split("=") if os.path.isfile(path)]
        broken = next(filter(_is_broken, files), None)
        where = f"{broken}, line {mark.line + 1}, column {mark.column + 1}," if broken and mark else broken or "A value"
        tabs = " YAML is indented by spaces, not by tabs." if "cannot start any token" in str(fault) else ""
        return f"{where} is no YAML: {' '.join((fault.problem or '').split())}.{tabs}"

    def _candidates(self, name: str) -> Iterable[str]:
        """What may be meant by it: no class, if it stands where an option's name does."""
        options = [arg.partition("=")[0] for arg in self.args if arg.startswith("--")]
        as_option = any(name in option.lstrip("-").split(".") for option in options)
        return (known for known in self.known if not (as_option and known[:1].isupper()))


_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list, as [a,b]",
    "Sequence": "a list, as [a,b]",
}


def _in_plain_words(said: str) -> tuple[str, list[str]]:
    """What is expected without Python's types; and the choices, if there are such."""
    said = re.sub(r"an? <class '(?:\w+\.)*(\w+)'>", lambda kind: _KINDS.get(kind[1], kind[0]), said)
    choices = [re.findall(r"'(\w+)'", found) for found in re.findall(r"a typing\.Literal\[(.*?)\]", said)]
    return re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", said), [name for names in choices for name in names]


def _is_broken(file: str) -> bool:
    try:
        read_yaml(Path(file))
    except UsageError:
        return True
    return False


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """``" Did you mean …?"`` with the nearest of the known names, of options by their last part; or nothing."""
    names = {name.rpartition(".")[2]: name for name in known}
    close = get_close_matches(wrong, names, n=1, cutoff=0.75)
    return f" Did you mean {names[close[0]]}?" if close and wrong not in names else ""


_load = get_loader("yaml")


def _limited_load(text: str) -> Any:
    try:
        return limited(_load(text))
    except (ValueError, RecursionError) as fault:  # a number of 5,000 digits, 5,000 brackets
        raise yaml.YAMLError(str(fault)) from fault


set_loader("yaml", _limited_load, exceptions=(yaml.YAMLError,))
