"""Channels that compete for every position."""

from torch import Tensor, nn
from typing_extensions import override


class ChannelCompetition(nn.Module):
    """What of each channel stands out of its own mean over positions, and then of the mean over channels.

    relu(r − mean_c r), r = relu(x − mean_hw x); the activation of the CIFAR-10 networks of D. Liu et al., "Unsupervised
    End-to-End Training with a Self-Defined Target" (2024).
    """

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(B, C, H, W)`` → maps."""
        r = (x - x.mean((2, 3), keepdim=True)).relu()
        return (r - r.mean(1, keepdim=True)).relu()
