"""What is refused before anything is trained: options that mean nothing, and what cannot be built."""

import contextlib
import inspect
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.base import ImageDataModule
from datamodules.files import DataError
from losses.errors import UsageError

FAULTS = (UsageError, DataError, MisconfigurationException)
"""Faults of use; the last is Lightning's own."""

_REFUSALS = (ValueError, TypeError, RuntimeError, ImportError, OverflowError, MemoryError)
"""With what torch, Lightning and others refuse a value, a device, a package that is not there, or a size."""

_refused: list[tuple[str, Exception]] = []

_LARGEST = 2**53
"""Number: beyond it floats skip whole numbers."""


def plain_seed(seed: int) -> int:
    """The seed, if it is one.

    Raises:
        UsageError: numpy would refuse it.
    """
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed_everything: a seed is from 0 to {2**32 - 1}, not {seed}.")
    return int(seed)


def require_plain(options: Namespace) -> None:
    """See that numbers are finite, and that texts can stand in a file's name.

    Raises:
        UsageError: one is not.
    """
    for key, value in _leaves(options):
        if isinstance(value, (int, float)) and not abs(value) <= _LARGEST:
            raise UsageError(f"--{key}: {value} is no number that can be used.")
        if isinstance(value, str) and ("\0" in value or value != value.encode(errors="ignore").decode()):
            raise UsageError(f"--{key}: {value!r} is no text in UTF-8.")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Option → value, all of them."""
    if isinstance(value, (Namespace, dict)):
        for name, part in (vars(value) if isinstance(value, Namespace) else value).items():
            yield from _leaves(part, f"{key}.{name}".removeprefix(".").removesuffix(".init_args"))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part, key)
    else:
        yield key, value


def build(class_type: Any, *args: Any, **kwargs: Any) -> Any:
    """What jsonargparse shall build classes with: of what they raise it keeps the words at most."""
    try:
        _require_values(class_type, kwargs)
        built = class_type(*args, **kwargs)
        if isinstance(built, ImageDataModule):
            built.require_constants()  # before a model is built after them
        return built
    except Exception as fault:  # of whatever kind: it is raised again
        _refused.append((getattr(class_type, "__name__", str(class_type)), fault))
        raise


def _require_values(class_type: Any, given: dict[str, Any]) -> None:
    """See that nothing is null that needs a value: jsonargparse takes null for "not given".

    Raises:
        UsageError: something is.
    """
    for name in (name for name, value in given.items() if value is None):
        makers = [vars(owner).get("__init__") for owner in getattr(class_type, "__mro__", ())] or [class_type]
        found = (inspect.signature(maker).parameters.get(name) for maker in makers if inspect.isroutine(maker))
        parameter = next(filter(None, found), None)
        if parameter is None or parameter.default is None or parameter.annotation is parameter.empty:
            continue
        kinds = inspect.formatannotation(parameter.annotation)
        if not re.search("None|Optional|Any", kinds):
            raise UsageError(f"{name} of {class_type.__name__} must not be null: leave it out, or give a value.")


@contextlib.contextmanager
def refusals_told() -> Iterator[None]:
    """While objects are built: what refuses a value says so in one sentence.

    Raises:
        UsageError: a constructor, ours or Lightning's or torch's, refused a value.
    """
    _refused.clear()
    try:
        yield
    except Exception as error:  # jsonargparse's, often of another kind than what a constructor raised
        what, fault = _refused[-1] if _refused else ("What is asked for", error)
        if isinstance(fault, FAULTS) or not isinstance(fault, _REFUSALS):
            raise fault from None
        raise UsageError(f"{what} cannot be built: {in_one_line(fault)}") from fault


def in_one_line(fault: Exception) -> str:
    """Its message; of another kind than a ValueError also the kind and the line of code, which is perhaps one's own."""
    message = " ".join(str(fault).split()).rstrip(".")
    if isinstance(fault, ValueError):
        return f"{message}."
    *_, last = traceback.extract_tb(fault.__traceback__)
    return f"{type(fault).__name__}: {message} ({Path(last.filename).name}, line {last.lineno})."


def require_two_images(fault: ValueError) -> None:
    """See that it was not a batch of one image that failed.

    Raises:
        UsageError: it was: BatchNorm has no statistics of one.
    """
    if "Expected more than 1 value per channel" in str(fault):
        raise UsageError(
            "BatchNorm has no statistics of one image: give a --data.batch_size above 1 that does not leave a single "
            "training image for the last batch of an epoch."
        ) from fault


def raised_in(fault: Exception) -> str:
    """The module that raised it."""
    *_, (frame, _) = traceback.walk_tb(fault.__traceback__)
    return frame.f_globals["__name__"]
