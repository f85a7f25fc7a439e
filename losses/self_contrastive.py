"""Self-contrastive Forward-Forward: an image beside itself is positive data, beside another image negative data.

X. Chen, D. Liu, J. Laydevant, J. Grollier, "Self-Contrastive Forward-Forward algorithm", Nature Communications 16, 5978
(2025), arXiv 2409.11593. Formulas as in their released code, but softplus(x) for log(1 + exp(x)), which overflows.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_EPSILON = 1e-10


def standardised(x: Tensor) -> Tensor:
    """Each sample of ``(B, …)`` with mean 0 and standard deviation 1 over all its numbers; a constant one becomes 0."""
    dimensions = tuple(range(1, x.dim()))
    centred = x - x.mean(dimensions, keepdim=True)
    return centred / (_EPSILON + centred.std(dimensions, keepdim=True))


def neighbour(x: Tensor, shift: int) -> Tensor:
    """Samples ``(B, …)`` in the order in which sample i stands beside sample i + shift (mod B)."""
    return x.roll(-shift, 0)


def unit_goodness(z: Tensor) -> Tensor:
    """Mean of relu(z)² over units: of pre-activations ``(B, N)`` → ``(B,)``, ``(B, N, H, W)`` → ``(B, H, W)``."""
    return z.relu().square().mean(1)


def self_contrastive_loss(
    positive: Tensor, negative: Tensor, positive_threshold: float, negative_threshold: float, penalty: float = 0.0
) -> Tensor:
    """Mean softplus(θ⁺ − G⁺) + mean softplus(G⁻ − θ⁻) + λ mean ‖G⁺‖; a scalar.

    Args:
        positive: G⁺, goodnesses of positive pairs, ``(B,)``, or ``(B, H, W)`` of each position.
        negative: G⁻, of negative pairs, likewise.
        positive_threshold: θ⁺.
        negative_threshold: θ⁻.
        penalty: λ; the norm is Euclidean, over the positions of a sample: of ``(B,)`` it is |G⁺|.
    """
    separated = F.softplus(positive_threshold - positive).mean() + F.softplus(negative - negative_threshold).mean()
    return separated + penalty * positive.reshape(len(positive), -1).norm(dim=1).mean()


@torch.no_grad()
def separated(positive: Tensor, negative: Tensor, positive_threshold: float, negative_threshold: float) -> Tensor:
    """Share of goodnesses on their side: positive ones above θ⁺, negative ones below θ⁻ (their mean); a scalar."""
    above = (positive > positive_threshold).float().mean()
    return (above + (negative < negative_threshold).float().mean()) / 2
