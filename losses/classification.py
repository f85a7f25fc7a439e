"""Predictions of a network whose every block classifies."""

from collections.abc import Sequence

import torch
from torch import Tensor


def top1(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of rows of ``(B, classes)`` whose largest entry is at the label ``(B,)``; a scalar."""
    return (logits.argmax(dim=1) == labels).float().mean()


def ensemble_weights(count: int) -> list[float]:
    """Weights 2^i / (2^count − 1), i = 0 … count − 1: each block counts twice the one before it.

    Source: Belilovsky et al. (2020); GN-DGL, evaluation.
    """
    return [2**i / (2**count - 1) for i in range(count)]


def ensemble(logits: Sequence[Tensor]) -> Tensor:
    """Weighted mean of the blocks' class probabilities (not of their logits).

    Args:
        logits: one ``(B, classes)`` per block, first block first.

    Returns:
        Probabilities ``(B, classes)``.
    """
    weights = ensemble_weights(len(logits))
    return torch.stack([w * z.softmax(dim=1) for w, z in zip(weights, logits, strict=True)]).sum(dim=0)
