"""Several processes, each with a part of every batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


class Sharing:
    """Who shares a batch with this process: all, unless a strategy says otherwise.

    Attributes:
        group: they, and this process; None for all.
    """

    group: ClassVar[dist.ProcessGroup | None] = None


def process_count() -> int:
    """How many share a batch."""
    return dist.get_world_size(Sharing.group) if dist.is_initialized() else 1


@contextmanager
def alone() -> Iterator[None]:
    """Let this process be the only one, while the others do something else or are gone.

    It is torch.distributed that says so: losses and metrics of libraries ask it themselves.
    """
    asked = dist.is_initialized
    dist.is_initialized = lambda: False
    try:
        yield
    finally:
        dist.is_initialized = asked


def gathered(rows: Tensor) -> Tensor:
    """Rows of all processes, ``(P · B, …)``, for losses that compare the images of a batch with each other.

    A loss that all processes compute on all rows has gradients for each one's own rows only. They are P times as large
    here: averaged over the processes, gradients of weights are then those of one process with the whole batch. Only
    rows travel, forward; no gradient does.

    Args:
        rows: this process's, ``(B, …)``; all processes have as many.
    """
    if (count := process_count()) == 1:
        return rows
    if rows.requires_grad:
        rows = rows.view_as(rows)  # a hook on the rows themselves would scale the gradients of other losses, too
        rows.register_hook(lambda gradient: gradient * count)
    return side_by_side(rows, 0, Sharing.group)


def side_by_side(own: Tensor, dim: int, group: dist.ProcessGroup | None) -> Tensor:
    """What all processes of a group have, one after the other along a dimension; gradients go to what this one has.

    Args:
        own: this process's tensor; all have one of this shape.
        dim: where to join them.
        group: the processes; None for all.
    """
    parts = [torch.empty_like(own, requires_grad=False) for _ in range(dist.get_world_size(group))]
    mine = torch.empty_like(parts[0]).copy_(own.detach())
    dist.all_gather([*map(flat, parts)], flat(mine), group)
    parts[dist.get_rank(group)] = own
    return torch.cat(parts, dim)


def flat(tensor: Tensor) -> Tensor:
    """The memory of a dense tensor, in one row: gloo sends nothing in channels-last order."""
    return tensor.as_strided((tensor.numel(),), (1,))


def mean_over_processes(statistics: Tensor) -> Tensor:
    """The mean of what the processes have, of one shape; its gradients, averaged as those of weights are, are exact."""
    if (count := process_count()) == 1:
        return statistics
    return all_reduce(statistics, group=Sharing.group or dist.group.WORLD) / count
