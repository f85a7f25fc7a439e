"""Self-defined targets as one would write them without a library: one layer of outputs, its winners, its optimizer.

What :class:`models.SelfDefinedTarget` is compared with, in tests for equality, in ``step_time.py`` for speed.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer


class PlainSelfDefinedTarget:
    """A layer whose most active outputs are their own targets.

    Args:
        layer: from the pixels to the outputs.
        make_optimizer: parameters → optimizer.
        winners: of each image.
        rate: of the homeostasis.
        dropout: share of the outputs that each image leaves out.
        input_dropout: share of the pixels that it leaves out.
    """

    def __init__(
        self,
        layer: nn.Linear,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        winners: int = 6,
        rate: float = 0.4,
        dropout: float = 0.2,
        input_dropout: float = 0.3,
    ) -> None:
        self.layer, self.optimizer = layer, make_optimizer([*layer.parameters()])
        self.winners, self.rate, self.dropout, self.input_dropout = winners, rate, dropout, input_dropout
        self.threshold = torch.zeros(layer.out_features)

    def step(self, images: Tensor) -> None:
        """Learn from a batch."""
        y = self.layer(F.dropout(images.flatten(1), self.input_dropout)).clamp(0, 1)
        mask = (torch.rand_like(y) < 1 - self.dropout).to(y.dtype)
        y = y * mask
        with torch.no_grad():
            chosen = (y - self.threshold).topk(self.winners, 1).indices
            target = torch.zeros_like(y).scatter_(1, chosen, 1.0) * mask
            usual = (1 - self.dropout) * self.winners / len(self.threshold)
            self.threshold += self.rate * (target.mean(0) - usual)
        self.optimizer.zero_grad()
        F.mse_loss(y, target).backward()
        self.optimizer.step()
