"""What embeddings are like: figures that mean the same for every self-supervised loss."""

import torch
from torch import Tensor
from torch.nn import functional as F


def pretext_top1(a: Tensor, b: Tensor) -> Tensor:
    """Share of images in view a whose nearest embedding in view b (by cosine) is their own.

    Args:
        a: embeddings ``(B, D)`` of one view.
        b: embeddings ``(B, D)`` of the other.
    """
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    return (similarity.argmax(dim=1) == torch.arange(len(a), device=a.device)).float().mean()


def correlation_parts(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The two sums of the Barlow Twins loss: Σ (C_ii − 1)², invariance, and Σ_{i≠j} C_ij², redundancy.

    C is the correlation over the batch between the dimensions of the views' embeddings ``(B, D)``
    (Zbontar et al., 2021).
    """
    a, b = (F.batch_norm(z, None, None, training=True) for z in (a, b))
    squares = (a.T @ b / len(a)).square_()
    correlations = (a * b).mean(dim=0)
    return (correlations - 1).square().sum(), squares.sum() - correlations.square().sum()


def largest_deviation(z: Tensor) -> Tensor:
    """Largest standard deviation over the batch of any dimension of ``(B, D)``; 0 means collapsed embeddings."""
    return z.std(dim=0, correction=0).max()


def effective_rank(features: Tensor) -> float:
    """How many directions the features ``(N, d)`` use: exp of the entropy of their normalised singular values.

    Features are centred first. Between 1 (one direction) and d (all alike); 0 if all rows are the same.
    Source: O. Roy, M. Vetterli, "The effective rank", EUSIPCO 2007.
    """
    values = torch.linalg.svdvals((features - features.mean(dim=0)).double())
    if values.sum() == 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())
