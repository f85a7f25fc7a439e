"""Noise on what a block hands on."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

NoiseKind = Literal["none", "all", "hw", "c"]

_DIMENSIONS: Mapping[str, tuple[int, ...]] = {"all": (0, 1, 2, 3), "hw": (2, 3), "c": (1,)}


class FeatureNoise(nn.Module):
    """x + σ · ε · s(x) in training mode, ε standard normal, s the features' own standard deviation.

    Siddiqui et al. (2024) add it to the output of every block, fresh for each view; best was ``all`` with σ = 0.25.

    Args:
        kind: what s is taken over: ``all`` entries of the view's batch (one number), the positions ``hw`` of
            each channel of each image (B × C × 1 × 1), the channels ``c`` of each position of each image
            (B × 1 × H × W; the published code takes them over the height, which is a slip); or ``none``.
        sigma: σ.
    """

    def __init__(self, kind: NoiseKind = "none", sigma: float = 0.25) -> None:
        super().__init__()
        self.kind, self.sigma = kind, sigma

    def forward(self, x: Tensor) -> Tensor:
        """Add noise to feature maps ``(B, C, H, W)``."""
        if self.kind == "none" or not self.training:
            return x
        deviation = x.std(_DIMENSIONS[self.kind], correction=0, keepdim=True)  # tiny maps: no Bessel correction
        return x + self.sigma * torch.randn_like(x) * deviation

    def extra_repr(self) -> str:
        """Settings, for printing."""
        return f"kind={self.kind!r}, sigma={self.sigma}"
