"""Forward-Forward as one would write it without a library: a loop over layers, with hard negatives.

Slow in nothing, general in nothing: what :class:`models.ForwardForward` is compared with, in tests for equality, in
``step_time.py`` for speed. Where the published rule adds the peers' term to the signal of the total input,
whether a unit is on or off, a loss on the total input does the same here.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

Draw = Callable[[Tensor, Tensor], Tensor]
"""(labels, logits of the read-out) → wrong labels."""


def rms(rows: Tensor) -> Tensor:
    """Rows over the root of their mean square."""
    return rows / (rows.square().mean(1, keepdim=True) + 1e-16).sqrt()


def overlaid(images: Tensor, pixels: Tensor) -> Tensor:
    """Images ``(B, …)`` as vectors that begin with the pixels ``(B, classes)``."""
    rows = images.flatten(1).clone()
    rows[:, : pixels.shape[1]] = pixels
    return rows


def drawn(labels: Tensor, logits: Tensor) -> Tensor:
    """Wrong labels, drawn from the softmax without the true class."""
    p = logits.softmax(1)
    p[torch.arange(len(p)), labels] = 0
    return p.multinomial(1)[:, 0]


class PlainForwardForward:
    """Layers, a read-out of all but the first, and their optimizers.

    Args:
        layers: fully connected, from the pixels on.
        readout: of the activities of all but the first.
        make_optimizer: parameters → optimizer of a layer.
        make_readout_optimizer: the same for the read-out.
        peer: weight of peer normalisation.
    """

    def __init__(
        self,
        layers: Sequence[nn.Linear],
        readout: nn.Linear,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        make_readout_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        peer: float = 0.03,
    ) -> None:
        self.layers, self.readout, self.peer = layers, readout, peer
        self.means = [torch.full_like(layer.bias, 0.5, requires_grad=False) for layer in layers]
        self.optimizers = [make_optimizer([*layer.parameters()]) for layer in layers]
        self.readout_optimizer = make_readout_optimizer([*readout.parameters()])

    def step(self, images: Tensor, labels: Tensor, draw: Draw = drawn) -> None:
        """Learn from a batch."""
        read = self._activities_without_a_label(images)
        logits = self.readout(read)
        codes = F.one_hot(torch.cat([labels, draw(labels, logits.detach())]), self.readout.out_features)
        x = rms(overlaid(images.repeat(2, 1, 1, 1), codes.to(images.dtype)))
        is_positive = (torch.arange(len(x)) < len(images)).to(images.dtype)
        for layer, mean, optimizer in zip(self.layers, self.means, self.optimizers, strict=True):
            z = layer(x)
            h = z.relu()
            goodness = h.square().sum(1)
            loss = F.binary_cross_entropy_with_logits(goodness - h.shape[1], is_positive)
            if self.peer:
                half = len(images)
                mean.copy_(0.9 * mean + 0.1 * h[:half].detach().mean(0))
                loss = loss - self.peer * (z[:half] * (mean.mean() - mean)).sum(1).mean()
            _update(optimizer, loss)
            x = rms(h.detach())
        _update(self.readout_optimizer, F.cross_entropy(logits, labels))

    @torch.no_grad()
    def _activities_without_a_label(self, images: Tensor) -> Tensor:
        classes = self.readout.out_features
        x, activities = rms(overlaid(images, images.new_full((len(images), classes), 1 / classes))), []
        for layer in self.layers:
            x = rms(layer(x).relu())
            activities.append(x)
        return torch.cat(activities[1:], 1)


def _update(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
