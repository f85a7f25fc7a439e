"""Global average pooling whose gradient keeps the memory layout."""

from torch import Tensor, nn


class GlobalAveragePool(nn.Module):
    """Mean over the spatial positions: ``(B, C, H, W)`` → ``(B, C)``.

    The same figure as ``nn.AdaptiveAvgPool2d(1)``, taken on the ``(B, H, W, C)`` view. The other's
    gradient comes back in plain layout, and the ReLU before it then works on two layouts at once:
    pooling and ReLU of a 32×16×16 map take 3.9 ms instead of 0.6 (batch 128, 2 CPU cores).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool."""
        return x.permute(0, 2, 3, 1).mean((1, 2))
