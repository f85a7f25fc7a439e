"""The cut: where a chain of units falls apart into blocks."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Literal

from torch import nn

from losses.errors import NetworkError
from models.networks.chain import Chain, FeatureShape
from models.networks.memory.profile import Cost, activation_bytes, profile


@dataclass
class Cut:
    """How to cut a network into blocks.

    Args:
        by: what is balanced over the blocks, heads included: ``activation_bytes`` (saved for the
            backward pass), ``macs`` or ``units`` (their number); or the cut of the literature:
            ``published``, or ``published_memory`` for its memory-balanced variant.
        after: names of the units after which to cut, instead of all that.
    """

    by: Literal["activation_bytes", "macs", "units", "published", "published_memory"] = "activation_bytes"
    after: list[str] = field(default_factory=list)


MakeHead = Callable[[tuple[int, ...]], nn.Module]
"""Feature shape of one sample → head."""


def cut_chain(chain: Chain, num_blocks: int, cut: Cut, make_head: MakeHead) -> list[nn.Sequential]:
    """Cut a chain into K blocks; every unit is in exactly one block and keeps its name.

    Of the heads that ``make_head`` makes, for blocks other than the last, only the cost is looked at.

    Raises:
        NetworkError: K is below 1 or above the number of units, a name is unknown, named twice or the
            last unit's (its block would be followed by an empty one), the number of names does not
            fit K, or the literature has no such cut of this network.
    """
    names = chain.unit_names
    if not 1 <= num_blocks <= len(names):
        raise NetworkError(
            f"{chain.name} has {len(names)} units ({names[0]} … {names[-1]}) and cannot be cut into {num_blocks} "
            f"blocks. Choose num_blocks between 1 and {len(names)}."
        )
    if cut.after:
        ends = _named(chain, num_blocks, cut.after)
    elif num_blocks == 1:
        ends = []
    elif cut.by in ("published", "published_memory"):
        ends = _published(chain, num_blocks, cut.by)
    else:
        ends = _balanced(chain, num_blocks, cut.by, make_head)
    children = list(chain.units.named_children())
    bounds = [0, *(names.index(end) + 1 for end in ends), len(names)]
    return [nn.Sequential(OrderedDict(children[start:stop])) for start, stop in pairwise(bounds)]


def block_shapes(chain: Chain, blocks: Iterable[nn.Module]) -> list[tuple[int, ...]]:
    """Shape of every block's (or unit's) output for one image; of the chain's own it knows at which unit they end."""
    blocks = list(blocks)
    places = {unit: index for index, unit in enumerate(chain.units)}
    shapes = [cost.output_shape for cost, _ in profile(blocks, chain.image_shape)]
    ends = [places.get(block, places.get([block, *block.children()][-1])) for block in blocks]
    return [shape if end is None else FeatureShape(shape, chain, end) for shape, end in zip(shapes, ends, strict=True)]


def _named(chain: Chain, num_blocks: int, after: Sequence[str]) -> Sequence[str]:
    names = chain.unit_names
    for name in after:
        if name not in names:
            raise NetworkError(f"{chain.name} has no unit {name!r} to cut after. Its units are: {', '.join(names)}.")
    positions = [names.index(name) for name in after]
    if positions != sorted(set(positions)):
        raise NetworkError(
            f"Name the units to cut after once each and in their order in the network, not {list(after)}."
        )
    if positions[-1] == len(names) - 1:
        raise NetworkError(
            f"A cut after {names[-1]!r}, the last unit, would leave an empty block. Take it out of cut.after."
        )
    if len(after) != num_blocks - 1:
        raise NetworkError(
            f"cut.after makes {len(after) + 1} blocks ({len(after)} named + the last), but num_blocks is {num_blocks}."
        )
    return after


def _published(chain: Chain, num_blocks: int, by: str) -> Sequence[str]:
    table = chain.published_cuts if by == "published" else chain.published_memory_cuts
    if num_blocks not in table:
        known = ", ".join(map(str, table)) or "none"
        raise NetworkError(
            f"The literature has no cut of {chain.name} into {num_blocks} blocks under cut.by: {by} (known: {known}). "
            "Use cut.by: activation_bytes."
        )
    return table[num_blocks]


def _balanced(chain: Chain, num_blocks: int, by: str, make_head: MakeHead) -> list[str]:
    """Names of the units that end all blocks but the last, for the smallest largest block."""
    names = chain.unit_names
    last = len(names) - 1
    costs = profile(
        list(chain.units),
        chain.image_shape,
        make_head=lambda index, shape: (
            chain.classifier if index == last else make_head(FeatureShape(shape, chain, index))
        ),
    )
    if by not in _MEASURES:
        raise NetworkError(f"A network is cut by {', '.join(_MEASURES)}, published or published_memory, not by {by!r}.")
    measure = _MEASURES[by]

    units, heads = [unit for unit, _ in costs], [head for _, head in costs if head]  # every unit has one

    def block_cost(start: int, stop: int) -> int:
        return measure(units[start:stop], heads[stop - 1])

    return [names[stop - 1] for stop in balanced_stops(len(names), num_blocks, block_cost)[:-1]]


_MEASURES: Mapping[str, Callable[[list[Cost], Cost], int]] = {
    "activation_bytes": lambda units, head: activation_bytes([*units, head]),
    "macs": lambda units, head: sum(cost.forward_macs for cost in [*units, head]),
    "units": lambda units, head: len(units),
}


def balanced_stops(num_units: int, num_blocks: int, block_cost: Callable[[int, int], float]) -> list[int]:
    """Cut ``range(num_units)`` into consecutive non-empty blocks so that the dearest is cheapest.

    Among all cuts with the same dearest block, the one with the least sum of squared costs, so that
    the other blocks are even too. Dynamic programming, O(K·n²).

    Returns:
        The ``stop`` of each block, in order; ``block_cost(start, stop)`` is that of the units start … stop − 1.
    """
    cost = cache(block_cost)

    def best(combine: Callable[[float, float], float], limit: float) -> tuple[float, list[int]]:
        """Best (value, stops) over all cuts whose blocks cost at most ``limit``."""
        table: dict[int, tuple[float, list[int]]] = {0: (0, [])}
        for _ in range(num_blocks):
            options: dict[int, tuple[float, list[int]]] = {}
            for start, (value, stops) in table.items():
                for stop in range(start + 1, num_units + 1):
                    if cost(start, stop) <= limit:
                        total = combine(value, cost(start, stop))
                        if stop not in options or total < options[stop][0]:
                            options[stop] = (total, [*stops, stop])
            table = options
        return table[num_units]

    dearest, _ = best(max, float("inf"))
    _, stops = best(lambda value, block: value + block**2, dearest)
    return stops
