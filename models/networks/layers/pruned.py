"""Convolutions some of whose weights are 0 for good."""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from losses.errors import NetworkError


class PrunedConv2d(nn.Conv2d):
    """A convolution of whose weights a random share is 0, in training too: drawn once, kept in checkpoints.

    Args:
        args: those of ``nn.Conv2d``.
        pruned: share of the weights that are 0.
        options: those of ``nn.Conv2d``.

    Raises:
        NetworkError: no weight would be left.
    """

    kept: Tensor

    def __init__(self, *args: Any, pruned: float = 0.0, **options: Any) -> None:
        super().__init__(*args, **options)
        gone = round(pruned * self.weight.numel())
        if gone == self.weight.numel():
            raise NetworkError(f"A convolution of {gone} weights has none left with pruned {pruned:g}: choose less.")
        kept = torch.ones_like(self.weight, dtype=torch.bool, requires_grad=False)
        kept.view(-1)[torch.randperm(kept.numel())[:gone]] = False
        self.register_buffer("kept", kept)
        with torch.no_grad():
            self.weight *= kept

    @override
    def forward(self, input: Tensor) -> Tensor:
        """Maps ``(B, C, H, W)`` → maps; the gradient of a pruned weight is 0."""
        return self._conv_forward(input, self.weight * self.kept, self.bias)
