"""Gradients of a block, averaged over processes while the next block computes."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from losses.processes import Sharing, process_count


class Average:
    """Gradients on their way through all processes, in one piece of memory.

    They are taken from the weights, which get the mean when it is there: whoever drops the weights' own meanwhile
    drops nothing.

    Own code beside torch's: the reducer of its DDP, also of ``replicate``, waits at the end of every backward pass, and
    ``fully_shard`` refuses weights in channels-last memory.

    Args:
        weights: of one type, on one device; those without a gradient are left out.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = [weight for weight in weights if weight.grad is not None]
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        sizes = [weight.numel() for weight in self._weights]
        self._sum = self._weights[0].new_empty(sum(sizes))
        # In the memory layout of the weights, which optimizers are fastest with.
        pieces = zip(self._sum.split(sizes), self._weights, strict=True)
        self._means = [piece.as_strided(weight.shape, weight.stride()) for piece, weight in pieces]
        torch._foreach_copy_(self._means, gradients)
        self._arrival = dist.all_reduce(self._sum, group=Sharing.group, async_op=True)

    def hand_over(self) -> None:
        """Wait, and give the weights their gradients."""
        self._arrival.wait()
        self._sum /= process_count()
        for weight, mean in zip(self._weights, self._means, strict=True):
            weight.grad = mean
