"""Pooling heads of self-supervised blocks: feature maps → vectors.

S. A. Siddiqui, D. Krueger, Y. LeCun, S. Deny, "Blockwise Self-Supervised Learning at Scale", TMLR 2024,
compares three: global (GSP), local (LSP) and, the best, a 1×1 convolution that expands the channels before
global pooling (CbE + GSP, ``expansion.py``). Each is built as ``Head(feature_shape, expand_dim, …)``, where
``feature_shape`` is ``(C, H, W)`` of one image and ``expand_dim`` the width E of an expansion.
"""

from collections.abc import Callable

from torch import Tensor, nn
from typing_extensions import override

from losses.errors import NetworkError
from models.networks.layers.pooling import GlobalAveragePool


class PoolingHead(nn.Module):
    """Base: feature maps ``(B, C, H, W)`` → vectors ``(B, out_features)``.

    Args:
        feature_shape: ``(C, H, W)`` of one image.
        out_features: width of the vectors.

    Raises:
        NetworkError: the features are no maps.
    """

    def __init__(self, feature_shape: tuple[int, ...], out_features: int) -> None:
        super().__init__()
        if len(feature_shape) != 3:
            raise NetworkError(
                f"{type(self).__name__} pools feature maps (C, H, W), but this block hands on vectors "
                f"{tuple(feature_shape)}. Use a convolutional network."
            )
        self.out_features = out_features


PoolingCallable = Callable[[tuple[int, ...], int], PoolingHead]
"""(feature shape, expansion width E) → pooling head."""


class GlobalPooling(PoolingHead):
    """GSP: the mean over all positions, C wide whatever E is."""

    def __init__(self, feature_shape: tuple[int, ...], expand_dim: int) -> None:
        super().__init__(feature_shape, feature_shape[0])
        self.pool = GlobalAveragePool()

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


class LocalPooling(PoolingHead):
    """LSP: the mean within each bin of a grid, all bins concatenated to E values.

    The grid has E / C bins in as square a shape as they allow, wider than high: (2, 4), (2, 2), (1, 2), (1, 1)
    for the stages of a ResNet with E the last stage's width. The published grid is not known.

    Raises:
        NetworkError: C does not divide E, or the map has fewer rows or columns than the grid.
    """

    def __init__(self, feature_shape: tuple[int, ...], expand_dim: int) -> None:
        super().__init__(feature_shape, expand_dim)
        channels, height, width = feature_shape
        bins, rest = divmod(expand_dim, channels)
        rows = max((r for r in range(1, bins + 1) if bins % r == 0 and r * r <= bins), default=1)
        if rest or rows > height or bins // rows > width:
            raise NetworkError(
                f"LocalPooling makes expand_dim = {expand_dim} of {channels} channels on {height}×{width} positions in "
                "a grid of expand_dim / channels bins: choose a multiple of the channels that is small enough."
            )
        self.pool = nn.AdaptiveAvgPool2d((rows, bins // rows))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x).flatten(1)  # (B, C, rows, columns) → (B, E)
