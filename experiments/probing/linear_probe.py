"""Linear classifiers on frozen features: all blocks and all learning rates at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from experiments.probing.features import Examples, Features
from experiments.probing.protocol import Protocol


def linear_head(features: int, outputs: int, generator: torch.Generator, device: torch.device) -> nn.Linear:
    """A linear layer with weights N(0, 0.01), bias 0, that leaves torch's own random numbers alone."""
    head = nn.utils.skip_init(nn.Linear, features, outputs)
    nn.init.normal_(head.weight, std=0.01, generator=generator)
    nn.init.zeros_(head.bias)
    return head.to(device)


class LinearProbe:
    """Linear heads on every kind of features, each kind with learning rates of its own.

    SGD with learning rate r on a loss takes the steps of SGD with learning rate 1 on r times that loss, because the
    momentum is a sum of gradients; weight decay λ is a term λ/2 · |w|² of the loss. So one layer per kind, with one row
    per learning rate and class, and one optimizer serve all learning rates.

    Args:
        widths: kind → d.
        rates: kind → learning rates, which share their first weights.
        num_classes: number of classes.
        device: where to train.
        seed: of the first weights and of the shuffling.
        weight_decay: λ, of weights and biases.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        rates: Mapping[str, Sequence[float]],
        num_classes: int,
        device: torch.device,
        seed: int = 0,
        weight_decay: float = 0.0,
    ) -> None:
        self._generator, self._device = torch.Generator().manual_seed(seed), device
        self._weight_decay = weight_decay
        self.rates = {kind: torch.tensor(rates[kind], device=device) for kind in widths}
        self.heads = {kind: linear_head(d, num_classes, self._generator, device) for kind, d in widths.items()}
        for kind, head in self.heads.items():
            head.weight = nn.Parameter(head.weight.detach().repeat(len(rates[kind]), 1))
            head.bias = nn.Parameter(head.bias.detach().repeat(len(rates[kind])))

    def fit(self, examples: Examples, epochs: int, batch_size: int) -> "LinearProbe":
        """Train: SGD, momentum 0.9, cosine schedule to 0 with one step per epoch."""
        for _ in self.training(examples, epochs, batch_size):
            pass
        return self

    def training(self, examples: Examples, epochs: int, batch_size: int) -> Iterator[None]:
        """The same, which pauses after every epoch."""
        optimizer = SGD([p for head in self.heads.values() for p in head.parameters()], lr=1.0, momentum=0.9)
        schedule = CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for batch in examples.epoch(batch_size, self._generator):
                labels = batch.labels.to(self._device)
                losses = [self._loss(kind, values, labels) for kind, values in batch.kinds.items()]
                loss = sum(losses, start=torch.zeros((), device=self._device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            yield

    def _loss(self, kind: str, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropies and weight decay of all learning rates, each times its rate."""
        logits, rates = self._logits(kind, features), self.rates[kind]  # (B, rates, classes), (rates,)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(len(rates)), reduction="none")
        means = losses.view(-1, len(rates)).mean(0)
        return (means + self._decay(kind) if self._weight_decay else means) @ rates

    def _decay(self, kind: str) -> Tensor:
        """λ/2 · |w|² of each learning rate's weights and biases, ``(rates,)``."""
        head, count = self.heads[kind], len(self.rates[kind])
        weights = torch.cat([p.view(count, -1) for p in head.parameters()], dim=1)  # (rates, classes · (d + 1))
        return self._weight_decay / 2 * weights.square().sum(dim=1)

    def _logits(self, kind: str, features: Tensor) -> Tensor:
        """``(B, learning rates, classes)``."""
        return self.heads[kind](features.to(self._device)).unflatten(1, (len(self.rates[kind]), -1))

    @torch.no_grad()
    def accuracy(self, features: Features, top: int = 1) -> dict[str, list[float]]:
        """Kind → share of images, 0 … 1, whose class is among the ``top`` likeliest, by head of each learning rate."""
        right = {kind: torch.zeros_like(rates) for kind, rates in self.rates.items()}
        for rows in torch.arange(len(features)).split(4096):
            labels = features.labels[rows, None, None].to(self._device)
            for kind, values in features.kinds.items():
                likeliest = self._logits(kind, values[rows]).topk(top, dim=2).indices  # (B, rates, top)
                right[kind] += (likeliest == labels).any(2).sum(0)
        return {kind: (count / len(features)).tolist() for kind, count in right.items()}


def fit_linear(
    train: Examples,
    known: Examples,
    val: Features,
    num_classes: int,
    protocol: Protocol,
    device: torch.device,
    after_epoch: Callable[[LinearProbe], None] = lambda probe: None,
) -> tuple[LinearProbe, dict[str, float]]:
    """Choose a learning rate per kind of features, train with it.

    Args:
        train: what is learned from while a learning rate is chosen; of only one nothing is chosen.
        known: what is learned from in the end: ``train`` and ``val``.
        val: what a learning rate is chosen on.
        num_classes: number of classes.
        protocol: how to learn.
        device: where to.
        after_epoch: called with the final classifiers after each of their epochs.

    Returns:
        The classifiers after their last epoch, and kind → the chosen learning rate.
    """
    widths = {kind: values.shape[1] for kind, values in val.kinds.items()}

    def begin(rates: Mapping[str, Sequence[float]]) -> LinearProbe:
        return LinearProbe(widths, rates, num_classes, device, protocol.seed, protocol.weight_decay)

    rates = dict.fromkeys(widths, protocol.learning_rates[0])
    if len(protocol.learning_rates) > 1:
        tried = begin(dict.fromkeys(widths, protocol.learning_rates))
        found = tried.fit(train, protocol.epochs, protocol.batch_size).accuracy(val)
        rates = {kind: protocol.learning_rates[top1.index(max(top1))] for kind, top1 in found.items()}
    linear = begin({kind: [rate] for kind, rate in rates.items()})
    for _ in linear.training(known, protocol.epochs, protocol.batch_size):
        after_epoch(linear)
    return linear, rates
