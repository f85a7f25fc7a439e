"""Self-defined targets: of many outputs the most active ones are told to be what they are, without any label.

D. Liu, J. Laydevant, A. Pontlevy, D. Querlioz, J. Grollier, "Unsupervised End-to-End Training with a Self-Defined
Target", arXiv 2403.12116; Neuromorphic Computing and Engineering 4 (4), 2024. Formulas as in their released code.

    outputs y ──► y − H ──► the k largest of each image: target T = 1, all others 0
                      ▲                │
                      └── H += γ (mean T − a): who has won often enough wins less easily (homeostasis)
"""

import torch
from torch import Tensor, nn
from typing_extensions import override

from losses.errors import UsageError
from losses.processes import gathered
from ranges import NonNegativeFloat, PositiveInt, Share


class WinnerTakeAll(nn.Module):
    """Targets of N outputs, defined by the outputs themselves.

    H begins an epoch at 0 (:meth:`begin_epoch`), serves a batch as it was before it, and then moves. A common shift of
    all H changes no winner, so with batch means only γ matters, and H counts wins.

    Args:
        outputs: N.
        winners: k, winners of each image.
        rate: γ; 0 switches homeostasis off.
        dropout: share of the outputs that each image leaves out: they have no error, also if they have won.
        smoothing: s; the target is (1 − s) T + s k / N.
        memory: η of the running mean T̄ ← (1 − η) T̄ + η T, which takes the batch's place where batches are single
            images ("sequential"); none by default.

    Attributes:
        threshold: H, ``(N,)``.
        wins: how often each output has won in this epoch, ``(N,)``.

    Raises:
        UsageError: more winners than outputs, or all outputs are left out.
    """

    threshold: Tensor
    wins: Tensor
    mean: Tensor

    def __init__(
        self,
        outputs: int,
        winners: PositiveInt = 6,
        rate: NonNegativeFloat = 0.4,
        dropout: Share = 0.0,
        smoothing: Share = 0.0,
        memory: Share | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= winners <= outputs:
            raise UsageError(f"{winners} of {outputs} outputs cannot win: choose winners between 1 and {outputs}.")
        if dropout >= 1:
            raise UsageError(f"dropout {dropout:g} of a target leaves no output: choose a share below 1.")
        self.winners, self.rate, self.dropout = winners, rate, dropout
        self.smoothing, self.memory = smoothing, memory
        for name in ("threshold", "wins", "mean"):
            self.register_buffer(name, torch.zeros(outputs))

    def begin_epoch(self) -> None:
        """Forget who has won."""
        for buffer in self.buffers():
            buffer.zero_()

    def mask(self, outputs: Tensor) -> Tensor:
        """1 where an output takes part, 0 where it is left out, ``(B, N)``; what is kept is not enlarged."""
        if not self.dropout:
            return torch.ones_like(outputs)
        return (torch.rand_like(outputs) < 1 - self.dropout).to(outputs.dtype)  # half the time of bernoulli()

    @torch.no_grad()
    @override
    def forward(self, outputs: Tensor, mask: Tensor) -> Tensor:
        """Targets ``(B, N)`` of outputs ``(B, N)``, from which H learns.

        Args:
            outputs: y, masked.
            mask: 1 or 0, ``(B, N)``.
        """
        winners = (outputs - self.threshold).topk(self.winners, dim=1).indices
        won = torch.zeros_like(self.threshold.expand(outputs.shape)).scatter_(1, winners, 1.0)
        share = self.winners / self.threshold.numel()
        smoothed = (1 - self.smoothing) * won + self.smoothing * share if self.smoothing else won
        target = mask * smoothed
        self.wins += gathered(won).sum(0)
        self._adapt(gathered(target).mean(0), (1 - self.dropout) * share)
        return target

    def _adapt(self, mean: Tensor, usual: float) -> None:
        """Move H towards equal shares.

        Args:
            mean: of the batch's targets, ``(N,)``.
            usual: a, their expectation.
        """
        self.mean.lerp_(mean, 1.0 if self.memory is None else self.memory)
        self.threshold += self.rate * (self.mean - usual)
