"""Checkpoints as files: read without executing anything in them, and seen to hold what they must."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from losses.errors import UsageError

Parts = Mapping[str, Callable[[Any], bool]]
"""Name of a part → whether something is of its kind."""


def misfit(content: object, needed: Parts, possible: Parts) -> str | None:
    """What a mapping lacks of what is ``needed``, or what of it is strange, as one phrase; None if nothing is."""
    if not isinstance(content, Mapping):
        return f"it is {type(content).__name__}, not a mapping"
    for name in needed:
        if name not in content:
            return f"it has no {name}"
    strange = (name for name, fits in {**needed, **possible}.items() if name in content and not fits(content[name]))
    return next((f"its {name} is none: {str(content[name])[:40]}" for name in strange), None)


def is_count(value: object) -> bool:
    """Whether something is a number of things."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_number(value: object) -> bool:
    """Whether something is a number, or none that could be computed."""
    return isinstance(value, int | float)


def all_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether something is a mapping from names to things of a kind."""
    return lambda part: isinstance(part, Mapping) and all(isinstance(n, str) and kind(v) for n, v in part.items())


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _counts(value: object) -> bool:
    """Whether a tree, of mappings, has counts, or truths, as its leaves."""
    if isinstance(value, Mapping):
        return all(map(_counts, value.values()))
    return isinstance(value, bool) or is_count(value)


def _is_of_an_optimizer(state: object) -> bool:
    """Whether all that an optimizer remembers is tensors and numbers, and so are its settings."""
    if not (isinstance(state, Mapping) and isinstance(state.get("param_groups"), list)):
        return False
    remembered = [*state.get("state", {}).values()]
    return all(isinstance(part, Mapping) for part in [*remembered, *state["param_groups"]]) and not any(
        isinstance(value, str | Mapping) for part in [*remembered, *state["param_groups"]] for value in part.values()
    )


INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
"""What builds a model from the arguments in its checkpoint. Lightning would call whatever is named there."""


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def _are_arguments(value: object) -> bool:
    if not isinstance(value, Mapping) or value.get("_instantiator", INSTANTIATOR) != INSTANTIATOR:
        return False
    return isinstance(value.get("_class_path", ""), str) and all(isinstance(name, str) for name in value)


NEEDED: Parts = {"state_dict": all_of(_is_tensor), "epoch": is_count, "global_step": is_count, "loops": _counts}
POSSIBLE: Parts = {
    "optimizer_states": lambda states: isinstance(states, list) and all(map(_is_of_an_optimizer, states)),
    "metrics": all_of(is_number),
    "learned": is_count,
    "image_shape": lambda shape: isinstance(shape, list | tuple) and len(shape) == 3 and all(map(is_count, shape)),
    "image_mean": _are_numbers,
    "image_std": _are_numbers,
    "classes": lambda names: isinstance(names, list) and all(isinstance(name, str) for name in names),
    "arguments": _are_arguments,
    "callbacks": all_of(lambda _: True),
}
"""Parts of a checkpoint; those that are only possible are not in files of other versions or of weights alone."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it; every byte is compared with the file's checksums.

    Raises:
        UsageError: it is missing, damaged, or no checkpoint.
    """
    import torch  # takes seconds to import

    checkpoint: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as records:
            altered = records.testzip()
        if not altered:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        fault = f"{altered} was altered" if altered else misfit(checkpoint, NEEDED, POSSIBLE)
    except Exception as error:  # of whatever kind: damage misleads the readers of archive and pickle in many ways
        fault = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    if fault:
        raise UsageError(f"The checkpoint {path} is damaged or not one of ours ({fault}).")
    return checkpoint
