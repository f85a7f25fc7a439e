"""Linear classifiers on frozen features: all blocks and all learning rates at once."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from experiments.probing.features import Features
from experiments.probing.protocol import Protocol


def linear_head(features: int, outputs: int, generator: torch.Generator, device: torch.device) -> nn.Linear:
    """A linear layer with weights N(0, 0.01), bias 0, that leaves torch's own random numbers alone."""
    head = nn.utils.skip_init(nn.Linear, features, outputs)
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    return head.to(device)


class LinearProbe:
    """Linear heads on every kind of features, each kind with learning rates of its own.

    SGD with learning rate r on a loss takes the steps of SGD with learning rate 1 on r times that
    loss, because without weight decay the momentum is a sum of gradients. So one layer per kind, with
    one row per learning rate and class, and one optimizer serve all learning rates.

    Args:
        widths: kind → d.
        rates: kind → learning rates, which share their first weights.
        num_classes: number of classes.
        device: where to train.
        seed: of the first weights and of the shuffling.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        rates: Mapping[str, Sequence[float]],
        num_classes: int,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self._generator, self._device = torch.Generator().manual_seed(seed), device
        self.rates = {kind: torch.tensor(rates[kind], device=device) for kind in widths}
        self.heads = {kind: linear_head(d, num_classes, self._generator, device) for kind, d in widths.items()}
        for kind, head in self.heads.items():
            head.weight = nn.Parameter(head.weight.detach().repeat(len(rates[kind]), 1))
            head.bias = nn.Parameter(head.bias.detach().repeat(len(rates[kind])))

    def fit(self, features: Features, epochs: int, batch_size: int) -> "LinearProbe":
        """Train: SGD, momentum 0.9, no weight decay, cosine schedule to 0 with one step per epoch.

        A last, smaller batch is kept.
        """
        optimizer = SGD([p for head in self.heads.values() for p in head.parameters()], lr=1.0, momentum=0.9)
        schedule = CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for chosen in torch.randperm(len(features), generator=self._generator).split(batch_size):
                labels = features.labels[chosen].to(self._device)
                losses = [self._loss(kind, values[chosen], labels) for kind, values in features.kinds.items()]
                loss = sum(losses, start=torch.zeros((), device=self._device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
        return self

    def _loss(self, kind: str, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropies of all learning rates, each times its rate."""
        logits, rates = self._logits(kind, features), self.rates[kind]  # (B, rates, classes), (rates,)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(len(rates)), reduction="none")
        return losses.view(-1, len(rates)).mean(0) @ rates

    def _logits(self, kind: str, features: Tensor) -> Tensor:
        """``(B, learning rates, classes)``."""
        return self.heads[kind](features.to(self._device)).unflatten(1, (len(self.rates[kind]), -1))

    @torch.no_grad()
    def top1(self, features: Features) -> dict[str, list[float]]:
        """Kind → share of images, 0 … 1, that the head of each learning rate classifies correctly."""
        right = {kind: torch.zeros_like(rates) for kind, rates in self.rates.items()}
        for rows in torch.arange(len(features)).split(4096):
            labels = features.labels[rows, None].to(self._device)
            for kind, values in features.kinds.items():
                right[kind] += (self._logits(kind, values[rows]).argmax(2) == labels).sum(0)
        return {kind: (count / len(features)).tolist() for kind, count in right.items()}


def fit_linear(
    known: Features, held_out: int, num_classes: int, protocol: Protocol, device: torch.device
) -> tuple[LinearProbe, dict[str, float]]:
    """Choose a learning rate per kind of features, train with it.

    The last ``held_out`` of the known images are those for validation: while a learning rate is chosen they are not
    learned from; after that they are.

    Returns:
        The classifiers after their last epoch, and kind → the chosen learning rate.
    """
    widths = {kind: values.shape[1] for kind, values in known.kinds.items()}

    def fit(features: Features, rates: Mapping[str, Sequence[float]]) -> LinearProbe:
        linear = LinearProbe(widths, rates, num_classes, device, protocol.seed)
        return linear.fit(features, protocol.epochs, protocol.batch_size)

    tried = fit(known[:-held_out], dict.fromkeys(widths, protocol.learning_rates)).top1(known[-held_out:])
    rates = {kind: protocol.learning_rates[top1.index(max(top1))] for kind, top1 in tried.items()}
    return fit(known, {kind: [rate] for kind, rate in rates.items()}), rates
