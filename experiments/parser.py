"""A command-line parser that says what is wrong in one sentence."""

import inspect
import sys
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pydoc import ErrorDuringImport, locate
from typing import Any, ClassVar, NoReturn, get_args

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override


class Parser(LightningArgumentParser):
    """LightningCLI's parser, whose faults are one sentence that suggests what may have been meant.

    jsonargparse reads the options of a class by a parser of its own, which is one of these too. A fault is found in
    what such parsers know and were given; the words of jsonargparse are quoted where a value is wrong, no more.
    """

    owner: type
    given: Mapping[str, Any] = {}
    command: ClassVar["Parser"]
    within: ClassVar[list[ArgumentError]] = []
    """What the parsers of classes have raised: not all of it is in the chain of what is raised at last."""

    @override
    def add_class_arguments(self, theclass: type, *args: Any, **options: Any) -> list[str]:
        self.owner = theclass
        return super().add_class_arguments(theclass, *args, **options)

    @override
    def parse_args(self, args: Sequence[str], *others: Any, **options: Any) -> Namespace:  # type: ignore[override]  # fewer named
        self.given = dict(_pairs(args))
        if self.exit_on_error:  # that of all commands, then that of the given one
            Parser.command, Parser.within = self, []
        return super().parse_args(args, *others, **options)

    @override
    def parse_object(self, obj: Any, *others: Any, **options: Any) -> Namespace:
        self.given = dict(obj.items())
        return super().parse_object(obj, *others, **options)

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the fault and where help is; exit with code 2."""
        if not self.exit_on_error:  # the parser of a class: what it raises is caught, and may be tried otherwise
            try:
                super().error(message, ex)
            except ArgumentError as fault:
                fault.parser = self  # type: ignore[attr-defined]  # ours
                self.within.append(fault)
                raise
        print(f"error: {self.command.fault(message, ex)}", file=sys.stderr)
        print(f"All options: {self.command.prog.replace(' [options]', '')} --help", file=sys.stderr)
        self.exit(2)

    def fault(self, message: str, error: BaseException | None) -> str:
        """What is wrong, in one sentence.

        Args:
            message: what jsonargparse says of it.
            error: what it raised.
        """
        causes = list(_causes(error))
        if not any(hasattr(cause, "parser") for cause in causes):
            causes += [one for fault in self.within if str(fault).splitlines()[0] in message for one in _causes(fault)]
        at = [self, *(cause.parser for cause in causes if hasattr(cause, "parser"))][-1]
        place = ""
        for option, value in at.given.items():
            place = next((f"--{key}: " for key in self.given if f".{key}".endswith(f".{option}")), "")
            told = at._unknown_option(option, place) or at._unknown_class(option, value)
            if told or (at is self and (told := self._option_without_class(option, message))):
                return place + told
        first, words = message.strip().splitlines()[0], " ".join(str([message, *causes][-1]).split()).rstrip(".")
        return f"{first if words in first else (place if at is not self and place else f'{first} ') + words}."

    def _unknown_option(self, option: str, place: str) -> str | None:
        if self._home(option):
            return None
        if self.exit_on_error:
            return f"there is no such option.{did_you_mean(f'--{option}', self._option_string_actions)}"
        told, where = f"{self.owner.__name__} has no option '{option}'.", place.removesuffix(f".{option}: ")
        if beside := [one.__name__ for one in _siblings(self.owner) if _takes(one, option)]:
            return f"{told} {beside[0]} has; choose the class first: {where} {beside[0]} {where}.{option} …"
        return told + did_you_mean(option, [name.removeprefix("--") for name in self._option_string_actions])

    def _unknown_class(self, option: str, value: Any) -> str | None:
        hint = self._hint(option.removesuffix(".class_path"))
        known = [one.__name__ for one in _classes(hint)] if str not in get_args(hint) else []
        for name in _class_names(value) if known else ():
            if name not in known and not _is_there(name):
                suggestion = did_you_mean(name.rpartition(".")[2], known)
                return f"there is no class {name} here: give its path.{suggestion}"
        return None

    def _option_without_class(self, option: str, message: str) -> str | None:
        home = self._home(option)
        if home == option or home not in message or str not in get_args(self._hint(home)):
            return None
        own = option.removeprefix(f"{home}.").partition(".")[0]
        for owner in (one.__name__ for one in _classes(self._hint(home)) if _takes(one, own)):
            return f"{own} belongs to {owner}: add --{home} {owner} before it."
        return f"no class for --{home} has an option '{own}'."

    def _home(self, option: str) -> str:
        """The option, or that of the class which it is handed on to (``head`` of ``head.hidden``); empty if unknown."""
        if f"--{option}" in self._option_string_actions or option in [action.dest for action in self._actions]:
            return option
        while (option := option.rpartition(".")[0]) and not self._hint(option):
            pass
        return option

    def _hint(self, option: str) -> Any:
        return getattr(self._option_string_actions.get(f"--{option}"), "_typehint", None)


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """``" Did you mean …?"`` with the nearest name, of the same group (``cut.``) if that has any; or nothing."""
    alike = [name for name in known if name.rpartition(".")[0] == wrong.rpartition(".")[0]] or known
    names = {name.rpartition(".")[2]: name for name in alike}  # what a group shares makes none nearer
    close = get_close_matches(wrong.rpartition(".")[2], names, n=1)
    return f" Did you mean {names[close[0]]}?" if close else ""


def _pairs(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options with their values, of ``--option=value`` and ``--option value``."""
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        if arg.startswith("--"):
            option, equals, value = arg.removeprefix("--").partition("=")
            yield option.removesuffix("+"), value if equals else following


def _is_there(name: str) -> bool:
    """Whether a class can be imported by its path; a file that fails while it is imported says so itself."""
    try:
        return locate(name) is not None
    except ErrorDuringImport:
        return True


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _class_names(value: Any) -> Iterator[str]:
    """Classes that a value names: one, or those of a list, by their names or as dictionaries."""
    value = yaml.safe_load(value) if isinstance(value, str) else value
    for one in value if isinstance(value, list) else [value]:
        name = one.get("class_path") if isinstance(one, dict | Namespace) else one
        if isinstance(name, str):
            yield name


def _classes(hint: Any) -> Iterator[type]:
    """The known classes that an argument of this type takes, directly or as what a callable returns; no numbers."""
    for part in get_args(hint):
        yield from _classes(part)
    if inspect.isclass(hint) and not get_args(hint) and hint.__mro__[-2:][0].__module__ != "builtins":
        yield from [] if hint.__name__.startswith("_") else [hint]
        for derived in type.__subclasses__(hint):
            yield from _classes(derived)


def _siblings(owner: type) -> list[type]:
    """Classes beside this one in its package, which share a base with it."""
    package = owner.__module__.rpartition(".")[0]
    alike = [one for base in owner.__mro__[1:-1] for one in _classes(base)]
    return [one for one in alike if one.__module__.rpartition(".")[0] == package]


def _takes(one: type, option: str) -> bool:
    return option in inspect.signature(one.__init__).parameters  # type: ignore[misc]  # of a class
