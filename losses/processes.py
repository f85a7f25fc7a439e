"""Several processes, each with a part of every batch."""

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
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(count)]
    dist.all_gather(parts, rows.detach().contiguous(), Sharing.group)
    if rows.requires_grad:
        rows = rows.view_as(rows)  # a hook on the rows themselves would scale the gradients of other losses, too
        rows.register_hook(lambda gradient: gradient * count)
    parts[dist.get_rank(Sharing.group)] = rows
    return torch.cat(parts)


def mean_over_processes(statistics: Tensor) -> Tensor:
    """The mean of what the processes have, of one shape; its gradients, averaged as those of weights are, are exact."""
    if (count := process_count()) == 1:
        return statistics
    return all_reduce(statistics, group=Sharing.group or dist.group.WORLD) / count
