"""Goodness: how active a layer is, by which it tells real data from made-up ones, without any layer above.

G. Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", arXiv 2212.13345, 2022; formulas as in his
released code.

    activities h ──► goodness Σ h² ──► p = sigmoid((goodness − threshold) / temperature)
                                       positive rows: − log p, negative rows: − log (1 − p)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from losses.processes import mean_over_processes
from ranges import PositiveFloat


@dataclass(frozen=True)
class Goodness:
    """Goodness of a row of activities, and what it says of where the row comes from.

    Args:
        over: ``sum`` of the squares of a row's n activities, as published, or their ``mean``.
        threshold: mean square at which a row is taken for positive as likely as not; 1 is the published sum of n.
        temperature: what the goodness above the threshold is divided by.
    """

    over: Literal["sum", "mean"] = "sum"
    threshold: PositiveFloat = 1.0
    temperature: PositiveFloat = 1.0

    def of(self, activities: Tensor) -> Tensor:
        """Goodness ``(B,)``, float32, of activities ``(B, …)``: sums of squares are too much for half precision."""
        squares = activities.flatten(1).float().square()
        return squares.sum(1) if self.over == "sum" else squares.mean(1)

    def logits(self, goodness: Tensor, units: int) -> Tensor:
        """Logits of being positive, ``(B,)``, of the goodness of rows of so many units."""
        threshold = self.threshold * (units if self.over == "sum" else 1)
        return (goodness - threshold) / self.temperature


def logistic_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Mean of − log p over positive rows and of − log (1 − p) over as many negative ones.

    Its gradient is the published one, a sum over both kinds divided by B: the factor 2 that the published signal leaves
    out of the derivative of h² is the 2 of 2B rows.

    Args:
        positive: logits, ``(B,)``.
        negative: logits, ``(B,)``.
    """
    return (F.softplus(-positive).mean() + F.softplus(negative).mean()) / 2


def separation(positive: Tensor, negative: Tensor) -> Tensor:
    """Share of the rows that are on their side of the threshold, of their logits ``(B,)``; 0.5 is chance."""
    return ((positive > 0).float().mean() + (negative < 0).float().mean()) / 2


def unit_length(rows: Tensor) -> Tensor:
    """Rows ``(B, …)`` over the root mean square of each: their goodness is gone, their direction stays."""
    return F.rms_norm(rows.float(), rows.shape[1:], eps=1e-16)  # a row of zeros stays one


class PeerNormalisation(nn.Module):
    """Draws every unit's mean activity to that of all units of its layer: no unit is silent for ever, none loud.

    Written on activities, it reaches units that are off only through an activation that lets gradients through, as
    :class:`models.networks.layers.straight_through.StraightThroughReLU`; so is the published one, which "is not gated".

    Args:
        units: n.
        weight: of the term, 0.03 in the published code.
        memory: share of the running mean that a batch leaves as it is.

    Attributes:
        mean: running mean m of the activity of each unit on positive rows, ``(n,)``.
    """

    mean: Tensor

    def __init__(self, units: int, weight: float = 0.03, memory: float = 0.9) -> None:
        super().__init__()
        self.weight, self.memory = weight, memory
        self.register_buffer("mean", torch.full((units,), 0.5))

    @override
    def forward(self, positive: Tensor) -> Tensor:
        """− weight · Σ_j (mean of all m − m_j) h_j of the rows' mean h; m learns of it first.

        Args:
            positive: activities of the positive rows, ``(B, …)``.
        """
        activity = positive.flatten(1).float().mean(0)
        self.mean.lerp_(mean_over_processes(activity.detach()), 1 - self.memory)
        return -self.weight * (activity * (self.mean.mean() - self.mean)).sum()


def wrong_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """A label other than its own for each row, drawn from the softmax of logits without the true class.

    Args:
        labels: the true ones, int64 ``(B,)``.
        logits: of a classifier, whose mistakes are hard to tell; all the same for labels that are as likely,
            ``(B, classes)``.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.softmax(1).multinomial(1)[:, 0]


def hybrid_masks(images: Tensor, blurs: int) -> Tensor:
    """Random masks of large regions, 0 or 1, ``(B, 1, H, W)``: random bits, blurred several times, cut at one half.

    Args:
        images: ``(B, C, H, W)``, of which size, type and device are taken.
        blurs: times that [1/4, 1/2, 1/4] goes along both axes; beyond an edge everything is as at the edge.
    """
    line = images.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line)[None, None]
    masks = torch.full_like(images[:, :1], 0.5).bernoulli()
    for _ in range(blurs):
        masks = F.conv2d(F.pad(masks, (1, 1, 1, 1), mode="replicate"), kernel)
    return (masks > 0.5).to(images.dtype)


def hybrids(images: Tensor, others: Tensor, masks: Tensor) -> Tensor:
    """Images that are one image where a mask is 1, and another where it is 0: right nearby, wrong as a whole."""
    return torch.where(masks > 0, images, others)
