"""A command-line parser that says what is wrong in one sentence."""

import difflib
import inspect
import re
import sys
from importlib import import_module
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

# jsonargparse reports a fault inside a class as a tree of everything that it tried.
_NOISE = re.compile(
    r"Does not validate against any of the Union|Subtypes:|Errors:$|- Expected a <class 'NoneType'>"
    r"|Given value|- Expected a path but|- Expected a <class 'str'>$"
)

_UNION = "Does not validate against any of the Union"


def swallowed(error: BaseException) -> str | None:
    """What a constructor said that jsonargparse tried for an argument of several types; it keeps the text only."""
    return shorten(str(error)) if isinstance(error, ValueError) and str(error).startswith(_UNION) else None


class Parser(LightningArgumentParser):
    """LightningCLI's parser with short error messages that suggest what may have been meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the fault and where help is; exit with code 2."""
        if not self.exit_on_error:  # a parser within: what it raises is caught and tried otherwise
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        command = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"error: {shorten(message)}{parser.suggestion(message)}\nAll options: {command} --help\n")
        self.exit(2)

    def suggestion(self, message: str) -> str:
        """``" Did you mean …?"`` for a mistyped option, or nothing."""
        if match := re.search(r"Option '(\w+)' is not accepted", message):
            paths = re.findall(r"class_path '([\w.]+)'", message[: match.start()])
            known, prefix = _arguments(paths[-1]) if paths else [], ""
        elif match := re.search(r"unrecognized arguments: --([\w.]+)", message):
            known, prefix = [o.removeprefix("--") for o in self._option_string_actions], "--"
        else:
            return ""
        close = difflib.get_close_matches(match[1], known, n=1)
        return f" Did you mean {prefix}{close[0]}?" if close else ""


def shorten(message: str) -> str:
    """Keep the lines that say something, in one sentence."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if not _NOISE.search(line)]
    text = " ".join(line for line in lines if line)
    text = re.sub(r"\. Got value: Namespace\(.*", "", text)
    text = re.sub(r"Expected a dot import path string: (\w+)", r"there is no class \1 here: give its path", text)
    return re.sub(r"Problem with given class_path '[\w.]*?(\w+)': Parser key", r"\1:", text).rstrip(".:") + "."


def _arguments(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    try:
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError):
        return []
