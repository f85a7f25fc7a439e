"""A ReLU whose gradient does not know of it."""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from losses.errors import NetworkError


class StraightThroughReLU(nn.Module):
    """ReLU forward; backward the gradient goes through units that are off, too, so that something can revive them.

    For a loss of squares of its output that is the gradient of a ReLU: where the output is 0, so is that of its square.
    """

    @override
    def forward(self, x: Tensor) -> Tensor:
        return _Rectified.apply(x)


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def end_straight_through(block: nn.Module, name: str) -> None:
    """Put a :class:`StraightThroughReLU` in the place of the ReLU that a block ends with.

    Args:
        block: it is changed.
        name: what the message calls it.

    Raises:
        NetworkError: it ends with something else.
    """
    *_, (path, last) = block.named_modules()
    if not isinstance(last, nn.ReLU):
        raise NetworkError(
            f"Peer normalisation revives units through a ReLU at the end of each block, but {name} ends with "
            f"{type(last).__name__}: set --model.peer 0, or take an MLP with batch_norm: false and no dropout."
        )
    block.set_submodule(path, StraightThroughReLU())
