"""The diversity loss between the neuron groups of a block."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

_EPSILON = 1e-8


def diversity(
    logits: Tensor, labels: Tensor, temperature: float = 3.0, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    """Mean cosine between what different groups predict beside the true class; small if they err differently.

    Softmax at the temperature, true class set to zero, rest normalised to a distribution, then to unit
    length: q_g. The loss is the mean of ⟨q_g, q_h⟩ over samples and ordered pairs g ≠ h, computed as
    (|Σ q_g|² − Σ |q_g|²) / (G·(G − 1)). 0 for a single group.

    Source: GN-DGL (Patel et al., 2023), diversity-promoting loss; T = 3, weighted with λ = 0.5 there.

    Args:
        logits: ``(B, G, classes)``.
        labels: ``(B,)``.
        temperature: T.
        reduction: ``mean`` over the samples, or ``none``.

    Returns:
        A scalar, or ``(B,)``.
    """
    groups = logits.shape[1]
    p = (logits / temperature).softmax(dim=2)  # (B, G, classes)
    p = p.masked_fill(F.one_hot(labels, logits.shape[2]).bool().unsqueeze(1), 0)
    p = p / (p.sum(dim=2, keepdim=True) + _EPSILON)
    q = p / (p.square().sum(dim=2, keepdim=True) + _EPSILON).sqrt()
    pairs = q.sum(dim=1).square().sum(dim=1) - q.square().sum(dim=(1, 2))  # (B,)
    of_samples = pairs / max(groups * (groups - 1), 1)
    return of_samples.mean() if reduction == "mean" else of_samples
