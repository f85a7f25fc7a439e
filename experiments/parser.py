"""A command-line parser that says what is wrong in one sentence."""

import difflib
import inspect
import re
import sys
from argparse import Action
from collections.abc import Iterator, Mapping, Sequence
from pydoc import locate
from typing import Any, NoReturn, get_args

from lightning.pytorch.cli import LightningArgumentParser

# jsonargparse reports a fault inside a class as a tree of everything that it tried.
_NOISE = re.compile(
    r"Does not validate against any of the Union|Subtypes:|Errors:$|- Expected a <class 'NoneType'>"
    r"|Given value|- Expected a path but|- Expected a <class 'str'>$"
)

# The rest in plain words. What it says of one class after the other that it tried is said once.
_REWORDED = {
    r"(Expected a <class .*)?Expected a dot import path string: (\w+).*": r"there is no class \2 here: give its path",
    r"Type \S+ .*? callable class: (?=Option)": "",
    r"Option '(\w+)' is not accepted\. Got value: Namespace\(class_path='[\w.]*?(\w+)'.*": r"\2 has no option '\1'",
    r"Problem with given class_path '[\w.]*?(\w+)': Option '(\w+)' is not accepted.*": r"\1 has no option '\2'",
    r"Problem with given class_path '[\w.]*?(\w+)': unrecognized arguments: --([\w.]+).*": r"\1 has no option '\2'",
    r"\. Got value: Namespace\(.*": "",
    r"Problem with given class_path '[\w.]*?(\w+)': Parser key": r"\1:",
}

_NO_CLASS = re.compile(r"Expected a dot import path string: (\w+)")
_NO_OPTION = re.compile(
    r"Option '(?P<own>\w+)' is not accepted(\. Got value: Namespace\(class_path='[\w.]+')?"
    r"|unrecognized arguments: --(?P<given>[\w.]+)"
)
_NOT_CHOSEN = re.compile(
    r"Parser key \"([\w.]+)\":(?:(?!class_path).)*Expected a dot import path string: \w+\s+"
    r"Given value.*NestedArg\(key='(\w+)",
    re.DOTALL,
)
_PLACE = re.compile(r"Parser key \"([\w.]+)\"|class_path[ =]'([\w.]+)'")

_UNION = "Does not validate against any of the Union"  # what a constructor said is kept as text only
_NO_NAME = "You selected an invalid"  # Lightning's word on a strategy or an accelerator


def swallowed(error: BaseException) -> str | None:
    """The fault of use that a library tells as a bare ValueError; None if the error is none."""
    return shorten(str(error)) if isinstance(error, ValueError) and str(error).startswith((_UNION, _NO_NAME)) else None


class Parser(LightningArgumentParser):
    """LightningCLI's parser with short error messages that suggest what may have been meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the fault and where help is; exit with code 2."""
        if not self.exit_on_error:  # a parser within: what it raises is caught and tried otherwise
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        command = parser.prog.replace(" [options]", "")
        fault = parser.not_chosen(message) or shorten(message) + parser.suggestion(message)
        sys.stderr.write(f"error: {fault}\nAll options: {command} --help\n")
        self.exit(2)

    def not_chosen(self, message: str) -> str | None:
        """What is wrong if an option of a class is given, and the class itself is not; None if it is something else."""
        if fault := _NOT_CHOSEN.search(message):
            place, option = fault.groups()
            hint = getattr(self._option_string_actions.get(f"--{place}"), "_typehint", None)
            for owner in [choice.__name__ for choice in _choices(hint) if _takes(choice, option)]:
                return f"{option} belongs to {owner}: add --{place} {owner} before it."
        return None

    def suggestion(self, message: str) -> str:
        """What may have been meant by a mistyped class or option, or nothing."""
        fault = _NO_CLASS.search(message) or _NO_OPTION.search(message)
        if not fault:
            return ""
        options, keys, hint, owner = self._option_string_actions, [], None, None
        for key, class_path in _PLACE.findall(message[: fault.end()]):
            if key:
                keys, hint = [*keys, key], getattr(options.get(f"--{key}"), "_typehint", None)
            else:
                owner = locate(class_path)
                options = _options(owner)
        if fault.re is _NO_CLASS:
            return _did_you_mean(fault[1], [choice.__name__ for choice in _choices(hint)])
        option = fault["own"] or fault["given"]
        others = [other.__name__ for other in _choices(hint) if _is_beside(other, owner) and _takes(other, option)]
        if others:
            where = f"--{'.'.join(keys)}"
            return f" {others[0]} has; choose the class first: {where} {others[0]} {where}.{option} …"
        return _did_you_mean(option, [name if keys else f"--{name}" for name in _of_group(option, options)])


def shorten(message: str) -> str:
    """Keep the lines that say something, in one sentence."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if not _NOISE.search(line)]
    text = " ".join(line for line in lines if line)
    for pattern, words in _REWORDED.items():
        text = re.sub(pattern, words, text)
    return text.rstrip(".:") + "."


def _did_you_mean(wrong: str, known: Sequence[str]) -> str:
    """The nearest of the names; what they share, such as ``regularization.``, makes none nearer."""
    names = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(wrong.rpartition(".")[2], names, n=1)
    return f" Did you mean {names[close[0]]}?" if close else ""


def _options(owner: Any) -> dict[str, Action]:
    """The options of a class, those of nested ones and those handed on to base classes included."""
    parser = LightningArgumentParser()
    parser.add_class_arguments(owner, fail_untyped=False)
    return parser._option_string_actions


def _of_group(option: str, options: Mapping[str, Action]) -> list[str]:
    """The options of the same group, ``cut.by`` of ``cut.aftre``; all if there is no such group."""
    names = [name.removeprefix("--") for name in options]
    return [name for name in names if name.rpartition(".")[0] == option.rpartition(".")[0]] or names


def _is_beside(other: type, owner: Any) -> bool:
    """Whether two classes are of one package: an argument that is any module takes far too many."""
    return other.__module__.rpartition(".")[0] == owner.__module__.rpartition(".")[0]


def _takes(choice: type, option: str) -> bool:
    return option in inspect.signature(choice.__init__).parameters


def _choices(hint: Any) -> Iterator[type]:
    """The known classes that an argument of this type takes, directly or as what a callable returns."""
    for part in get_args(hint):
        yield from _choices(part)
    if inspect.isclass(hint) and not get_args(hint):
        if not hint.__name__.startswith("_"):
            yield hint
        for derived in hint.__subclasses__():
            yield from _choices(derived)
