"""What the losses of a slimmable network's widths weigh: widths, from 1.0 downwards → a factor for each."""

from collections.abc import Callable, Sequence

Weighting = Callable[[Sequence[float]], list[float]]
"""Widths that learn, from 1.0 downwards → a factor for the loss of each."""


def whole_first(widths: Sequence[float]) -> list[float]:
    """The whole network as much as 1 and all other widths together, the others 1 (Zhao et al., IJCV 2024)."""
    whole, *others = widths
    return [whole + sum(others), *(1.0 for _ in others)]


def all_equal(widths: Sequence[float]) -> list[float]:
    """1 each: "vanilla" joint training."""
    return [1.0 for _ in widths]


def by_width(widths: Sequence[float]) -> list[float]:
    """Each as much as its width, n in all for n widths; an alternative in the released code."""
    return [len(widths) * width / sum(widths) for width in widths]
