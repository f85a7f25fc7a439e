"""Adversarial losses: a generator makes fakes, a discriminator tells them from what is real.

I. Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, sections 3 and 4. A discriminator's output is a
logit: above 0 it takes something to be real.
"""

from torch import Tensor
from torch.nn import functional as F


def generator_loss(fakes: Tensor) -> Tensor:
    """Mean of −log p(real) of fakes, the non-saturating loss; a scalar.

    Args:
        fakes: logits of fakes ``(B, 1)``, whose gradient goes to the generator.
    """
    return F.softplus(-fakes).mean()


def discriminator_loss(real: Tensor, fakes: Tensor) -> Tensor:
    """Mean of −log p(real) of what is real plus mean of −log p(fake) of fakes; a scalar.

    Args:
        real: logits ``(B, 1)``.
        fakes: logits of fakes ``(B, 1)``, from which no gradient goes on to the generator.
    """
    return F.softplus(-real).mean() + F.softplus(fakes).mean()


def discriminator_accuracy(real: Tensor, fakes: Tensor) -> Tensor:
    """Share of what is told rightly, 0 … 1: both kinds of logits ``(B, 1)`` count the same; 0 is a fake."""
    return ((real > 0).float().mean() + (fakes <= 0).float().mean()) / 2
