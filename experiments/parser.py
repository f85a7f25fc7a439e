"""A command-line parser that says what is wrong in one sentence."""

import builtins
import re
import sys
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import ClassVar, NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override


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
        options = f"{' '.join(part for part in command if not part.startswith('--'))} --help"
        print(f"All options: {options}; those of a class: --model.help NAME, --data.help NAME", file=sys.stderr)
        self.exit(2)

    def _fault(self, message: str, error: BaseException | None) -> str:
        within = [why for words, why in self.refusals.items() if words in message]  # not all is in the chain of causes
        causes = [str(cause) for fault in (error, *within) for cause in _causes(fault)]
        place = dict.fromkeys(key for cause in causes for key in re.findall(r'"([\w.]+)"', cause.partition("\n")[0]))
        said = f"--{'.'.join(place)}: {causes[-1]}" if place else message
        said = " ".join(said.split()).rstrip(".")
        typed = re.findall(r"\w+", " ".join([*self.args, *re.findall(r"'([\w.]+)'", said)]))  # here, or in a file
        names = re.findall(r"\w+", re.sub(r"\S*/\S*", "", said))  # of no path
        wrong = [name for name in names if name in typed and not hasattr(builtins, name)]
        return f"{said}.{next(filter(None, (did_you_mean(name, self.known) for name in wrong)), '')}"


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """``" Did you mean …?"`` with the nearest of the known names, of options by their last part; or nothing."""
    names = {name.rpartition(".")[2]: name for name in known}
    close = get_close_matches(wrong, names, n=1, cutoff=0.75)
    return f" Did you mean {names[close[0]]}?" if close and wrong not in names else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
