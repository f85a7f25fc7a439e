"""Noise on what a block hands on."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from losses.errors import NetworkError
from ranges import NonNegativeFloat

NoiseKind = Literal["all", "hw", "c"]

_DIMENSIONS: Mapping[str, tuple[int, ...]] = {"hw": (2, 3), "c": (1,)}


class FeatureNoise(nn.Module):
    """x + σ · ε · s(x) in training mode, ε standard normal, s the features' own standard deviation.

    Siddiqui et al. (2024) add it to the output of every block, fresh for each view; best was ``all`` with σ = 0.25.
    ε is drawn again in the backward pass instead of being kept: of the size of the features, only the sum is new.

    Args:
        kind: what s is taken over: ``all`` entries of the view's batch (one number), the positions ``hw`` of
            each channel of each image (B × C × 1 × 1), the channels ``c`` of each position of each image
            (B × 1 × H × W; the published code takes them over the height, which is a slip).
        sigma: σ.
    """

    def __init__(self, kind: NoiseKind = "all", sigma: NonNegativeFloat = 0.25) -> None:
        super().__init__()
        self.kind, self.sigma = kind, sigma

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Add noise to feature maps ``(B, C, H, W)`` or, unless the kind is ``hw``, to vectors ``(B, C)``.

        Raises:
            NetworkError: the positions of vectors are asked for.
        """
        if not self.training:
            return x
        dimensions = _DIMENSIONS.get(self.kind, tuple(range(x.dim())))
        if max(dimensions) >= x.dim():
            raise NetworkError("Vectors have no positions: use FeatureNoise with kind all or c, not hw.")
        return _AddNoise.apply(x, dimensions, self.sigma, int(torch.randint(2**62, (), device="cpu")))

    @override
    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, sigma={self.sigma}"


class _AddNoise(torch.autograd.Function):
    """The sum; its gradient also goes through s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dimensions: tuple[int, ...], sigma: float, seed: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.dimensions, ctx.sigma, ctx.seed = dimensions, sigma, seed
        # Tiny maps: no Bessel correction.
        deviation = x.std(dimensions, correction=0, keepdim=True)  # the shape of x, but 1 in these dimensions
        return _normal(x, seed).mul_(sigma * deviation).add_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        centred = x - x.mean(ctx.dimensions, keepdim=True)  # the shape of x
        variance = centred.square().mean(ctx.dimensions, keepdim=True)  # that of the deviation, as what follows
        # dL/ds = σ Σ ε dL/dy and ds/dx = (x − mean) / (n s); where all entries are the same, s has no gradient.
        grad_deviation = ctx.sigma * (_normal(x, ctx.seed).mul_(grad)).sum(ctx.dimensions, keepdim=True)
        count = x.numel() // variance.numel()
        slope = torch.where(variance > 0, grad_deviation / (count * variance.sqrt()), 0)
        return centred.mul_(slope).add_(grad), None, None, None


def _normal(x: Tensor, seed: int) -> Tensor:
    """Standard normal numbers of the shape and memory layout of x, a function of the seed."""
    generator = None if x.is_meta else torch.Generator(x.device).manual_seed(seed)
    return torch.empty_like(x).normal_(generator=generator)
