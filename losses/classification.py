"""Predictions of a network whose every block classifies."""

from collections.abc import Sequence

import torch
from torch import Tensor


def top1(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of rows of ``(B, classes)`` (logits or probabilities) whose largest entry is at the label ``(B,)``."""
    return (logits.argmax(dim=1) == labels).float().mean()


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities ``(B, classes)`` of one head's logits, or the mean of G heads' ``(B, G, classes)``."""
    p = logits.softmax(dim=-1)
    return p if p.dim() == 2 else p.mean(dim=1)


def redundant_shares(p: Tensor, losses: Tensor, labels: Tensor) -> tuple[float, float]:
    """Shares, 0 … 1, of samples that teach a head nothing more: true class at p > 0.99; loss below 0.01.

    Of cross-entropy the two are nearly the same: −ln 0.99 = 0.01005.

    Args:
        p: class probabilities ``(N, classes)``.
        losses: of the samples, ``(N,)``.
        labels: int64 ``(N,)``.
    """
    true = p.gather(1, labels[:, None])
    return float((true > 0.99).double().mean()), float((losses < 0.01).double().mean())


def ensemble(logits: Sequence[Tensor]) -> Tensor:
    """Weighted mean of the blocks' class probabilities (not of their logits): each counts twice the one before it.

    Source: Belilovsky et al. (2020); GN-DGL, evaluation.

    Args:
        logits: one ``(B, classes)`` per block, or ``(B, G, classes)`` if it has G heads; first block first.

    Returns:
        Probabilities ``(B, classes)``.
    """
    total = 2 ** len(logits) - 1
    return torch.stack([2**k / total * probabilities(z) for k, z in enumerate(logits)]).sum(dim=0)
