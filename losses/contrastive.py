"""NT-Xent whose anchors see only some of the batch's negatives."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ranges import PositiveFloat, PositiveInt

Choice = Literal["random", "least_similar", "most_similar"]


class SubsampledNTXent(nn.Module):
    """SimCLR's loss (Chen et al., 2020) over ``negatives`` of the 2B − 2 other views per anchor.

    With all of them it equals lightly's ``NTXentLoss``. Which are taken: at random, or those whose images are
    least or most similar to the anchor's by the cosine of ``context`` (Fournier et al., 2023, choose by similarity;
    their rule is not known, so that both directions are here).

    Args:
        temperature: τ.
        negatives: negatives per anchor; None for all.
        choice: which.

    Raises:
        ValueError: no negatives, or a temperature that is not above 0.
    """

    def __init__(
        self, temperature: PositiveFloat = 0.5, negatives: PositiveInt | None = None, choice: Choice = "random"
    ) -> None:
        super().__init__()
        if temperature <= 0 or (negatives is not None and negatives < 1):
            raise ValueError(f"temperature and negatives must be above 0, not {temperature} and {negatives}.")
        self.temperature, self.negatives, self.choice = temperature, negatives, choice

    @override
    def forward(self, a: Tensor, b: Tensor, context: Tensor | None = None) -> Tensor:
        """Mean loss over the 2B anchors.

        Args:
            a: embeddings ``(B, D)`` of one view.
            b: embeddings ``(B, D)`` of the other.
            context: features ``(B, D')`` by which similar images are told, the same for both views; needed unless the
            choice is random.

        Raises:
            ValueError: there is no context, and the choice is not random.
        """
        images = len(a)
        z = F.normalize(torch.cat([a, b]), dim=1)  # (2B, D)
        similarity = z @ z.T / self.temperature  # (2B, 2B)
        partner = torch.arange(2 * images, device=z.device).roll(images)  # (2B,)
        positive = similarity.gather(1, partner.unsqueeze(1))  # (2B, 1)
        # Row i without its columns i and partner(i).
        other = torch.ones_like(similarity, dtype=torch.bool).fill_diagonal_(False)
        other[torch.arange(2 * images, device=z.device), partner] = False
        negative = similarity[other].view(2 * images, -1)  # (2B, 2B − 2)
        if self.negatives is not None and self.negatives < negative.shape[1]:
            chosen = self._rank(negative, other, context).topk(self.negatives, dim=1).indices
            negative = negative.gather(1, chosen)  # (2B, negatives)
        return (torch.cat([positive, negative], dim=1).logsumexp(dim=1) - positive.squeeze(1)).mean()

    def _rank(self, negative: Tensor, other: Tensor, context: Tensor | None) -> Tensor:
        """A number for each negative of each anchor, ``(2B, 2B − 2)``; the largest are taken."""
        if self.choice == "random":
            return torch.rand_like(negative)
        if context is None:
            raise ValueError(f"Negatives are chosen as {self.choice} by a context, and none was given.")
        c = F.normalize(context.detach().float(), dim=1).repeat(2, 1)
        closeness = (c @ c.T)[other].view_as(negative)
        return closeness if self.choice == "most_similar" else -closeness
