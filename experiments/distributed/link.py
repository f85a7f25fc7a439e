"""What goes from the process of some blocks to that of the next: batches, one after the other, one way."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from losses.errors import UsageError
from losses.processes import flat

_AHEAD = 2
"""Batches that are on their way at most: sent and not arrived, or with room for them and not asked for."""

_TAG = 1
"""Not 0, which torch takes for objects."""


class StoppedError(Exception):
    """The process before was told to stop."""


class Arrival(NamedTuple):
    """A batch that another process has handed on.

    Attributes:
        tree: its tensors, in whatever they were sent in.
        random_state: of torch's generators there, when it was sent.
    """

    tree: Any
    random_state: Tensor


@dataclass(frozen=True)
class Form:
    """How the tensors of a whole batch lie in memory: densely. All have a row per image.

    Attributes:
        spec: the tree that they are leaves of.
        leaves: those that are no tensors, the same in every batch; ``...`` in the places of tensors.
        tensors: shape, strides and type of each tensor.
    """

    spec: TreeSpec
    leaves: list[Any]
    tensors: list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]]

    @classmethod
    def of(cls, leaves: list[Any], spec: TreeSpec) -> Self:
        """The form of a batch."""
        dense = [torch.empty_like(leaf, device="meta") for leaf in leaves if isinstance(leaf, Tensor)]
        tensors = [(tuple(one.shape), one.stride(), one.dtype) for one in dense]
        return cls(spec, [... if isinstance(leaf, Tensor) else leaf for leaf in leaves], tensors)

    def room(self, device: torch.device) -> list[Tensor]:
        """Memory for a whole batch."""
        return [torch.empty_strided(*lies, dtype=dtype, device=device) for *lies, dtype in self.tensors]

    def tree(self, tensors: list[Tensor], rows: int) -> Any:
        """A batch of that many rows."""
        arrived = iter(tensors)
        return tree_unflatten([next(arrived)[:rows] if leaf is ... else leaf for leaf in self.leaves], self.spec)


class Outbox:
    """The sending end: it waits where more than two batches have not arrived yet.

    Args:
        to: rank of the process with the next blocks.
        group: for batches alone.
        device: where tensors are.
    """

    def __init__(self, to: int, group: dist.ProcessGroup, device: torch.device) -> None:
        self._to, self._group, self._device = to, group, device
        self._form: Form | None = None
        self._on_the_way: deque[tuple[list[dist.Work | None], list[Tensor]]] = deque()

    def send(self, tree: Any) -> None:
        """Send a batch, whose tensors must not be changed any more.

        Raises:
            UsageError: they have different numbers of rows.
        """
        leaves, spec = tree_flatten(tree)
        if len(rows := {leaf.shape[:1] for leaf in leaves if isinstance(leaf, Tensor)}) > 1:
            raise UsageError(
                "What a block hands on to another process has a row for each image, but here are tensors of "
                f"{' and '.join(str(*shape) for shape in sorted(rows))} rows: hand on several tensors of a row each."
            )
        if self._form is None:
            self._announce(Form.of(leaves, spec))
        assert self._form
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._post(len(tensors[0]), [*map(_whole, tensors, self._form.room(torch.device("meta")))])

    def stop(self) -> None:
        """Tell the next process that nothing more will come."""
        if self._form is None:
            self._announce(None)
        else:
            self._post(-1, self._form.room(self._device))

    def _announce(self, form: Form | None) -> None:
        self._form = form
        dist.send_object_list([form], self._to, self._group)

    def _post(self, rows: int, tensors: list[Tensor]) -> None:
        while len(self._on_the_way) >= _AHEAD:
            self._wait_for_the_oldest()
        tensors = [_head(rows, self._device), *map(flat, tensors)]
        works = [dist.isend(tensor, self._to, self._group, _TAG) for tensor in tensors]
        self._on_the_way.append((works, tensors))  # the memory stays as it is until then

    def _wait_for_the_oldest(self) -> None:
        works, _ = self._on_the_way.popleft()
        _wait(works)

    def end_epoch(self) -> None:
        """The batches of the next epoch, which are announced, may be of another form."""
        self._form = None

    def drain(self) -> None:
        """Wait until all has arrived."""
        while self._on_the_way:
            self._wait_for_the_oldest()


class Inbox:
    """The receiving end, where room for two batches is ready before they come.

    Args:
        source: rank of the process with the blocks before.
        group: for batches alone.
        device: where tensors shall be.
    """

    def __init__(self, source: int, group: dist.ProcessGroup, device: torch.device) -> None:
        self._source, self._group, self._device = source, group, device

    def batches(self, count: int) -> Iterator[Arrival]:
        """The batches of an epoch.

        Args:
            count: how many there are.

        Raises:
            StoppedError: the other end has stopped.
        """
        announced: list[Form | None] = [None]
        dist.recv_object_list(announced, self._source, self._group)
        if (form := announced[0]) is None:
            raise StoppedError
        ready = deque(self._post(form) for _ in range(min(_AHEAD, count)))
        for number in range(count):
            works, head, tensors = ready.popleft()
            _wait(works)
            if (rows := int(head[0])) < 0:
                raise StoppedError
            if number + _AHEAD < count:
                ready.append(self._post(form))
            yield Arrival(form.tree(tensors, rows), head[1:].cpu())

    def _post(self, form: Form) -> tuple[list[dist.Work | None], Tensor, list[Tensor]]:
        head, tensors = _head(0, self._device), form.room(self._device)
        works = [dist.irecv(tensor, self._source, self._group, _TAG) for tensor in [head, *map(flat, tensors)]]
        return works, head, tensors


def _wait(works: list[dist.Work | None]) -> None:
    for work in works:
        assert work  # None in a process that is not in the group
        work.wait()


def _head(rows: int, device: torch.device) -> Tensor:
    """Number of images, then the bytes of the generators' states, int64."""
    return torch.cat([torch.tensor([rows]), random_state(device).long()]).to(device)


def random_state(device: torch.device) -> Tensor:
    """State of torch's generators, uint8."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def set_random_state(state: Tensor, device: torch.device) -> None:
    """Go on with the random numbers where another process stopped."""
    own = len(torch.get_rng_state())
    torch.set_rng_state(state[:own].to(torch.uint8))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[own:].to(torch.uint8), device)


def _whole(tensor: Tensor, whole: Tensor) -> Tensor:
    """The tensor as a whole batch's lies in memory: what is missing in a smaller one is filled up with anything."""
    if tensor.shape == whole.shape and tensor.stride() == whole.stride():
        return tensor
    filled = torch.empty_strided(whole.shape, whole.stride(), dtype=tensor.dtype, device=tensor.device)
    filled[: len(tensor)] = tensor
    return filled
