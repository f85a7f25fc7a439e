"""Faults of use: what the commands report in one sentence, without a traceback."""

from collections.abc import Iterator


class UsageError(RuntimeError):
    """What was asked for cannot be done as it was asked; the message says why, and what to do instead."""


class NetworkError(UsageError):
    """A network cannot be built, or not be cut, as it was asked; the message says why and what to do."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """A fault, what it came from, what that came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def where_to_look(fault: BaseException) -> str:
    """What helps a person whose own file is not found: ``" …"``; or nothing."""
    return (
        " Start from the folder that your own files are in, or put it on PYTHONPATH."
        if isinstance(fault, ModuleNotFoundError)
        else ""
    )
