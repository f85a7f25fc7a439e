"""Learning-rate schedules of the published recipes that torch does not have."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ranges import NonNegativeFloat, NonNegativeInt, PositiveInt


class WarmupCosine(LambdaLR):
    """Cosine decay to zero with the linear warm-up of InfoPro and GN-DGL; step it once per epoch.

    In epoch e = 1 … E the rate is c(e) = lr/2 · (1 + cos(π e / E)); in the first W epochs it is
    c(e) · (e − 1) / W + start · (W + 1 − e). With lr 0.8, E 160, W 10, start 0.001 (the published
    values): 0.01 in epoch 1, 0 in epoch 160.

    Args:
        optimizer: its ``lr`` is the peak.
        epochs: E.
        warmup: W.
        start: rate added per warm-up epoch that is left, as a share of the peak.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: PositiveInt = 160,
        warmup: NonNegativeInt = 10,
        start: NonNegativeFloat = 0.00125,
    ) -> None:
        super().__init__(optimizer, _Factor(epochs, warmup, start))


class _Factor:
    """Finished epochs → share of the rate. An object, since schedules keep those in checkpoints, and functions not."""

    def __init__(self, epochs: int, warmup: int, start: float) -> None:
        self.epochs, self.warmup, self.start = epochs, warmup, start

    def __call__(self, finished: int) -> float:
        epoch = finished + 1
        cosine = 0.5 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1)))
        if epoch <= self.warmup:
            return cosine * (epoch - 1) / self.warmup + self.start * (self.warmup + 1 - epoch)
        return cosine
