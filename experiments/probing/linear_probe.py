"""Linear classifiers on frozen features: all blocks and all learning rates at once."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR
from typing_extensions import override

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

    Heads of one kind are computed as one matrix. No head reads the others', so one backward pass serves all.

    Args:
        widths: kind → d.
        rates: kind → learning rates, which share their first weights.
        num_classes: number of classes.
        device: where to train.
        protocol: how to learn; its seed is that of the first weights, of the shuffling and of what is dropped.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        rates: Mapping[str, Sequence[float]],
        num_classes: int,
        device: torch.device,
        protocol: Protocol,
    ) -> None:
        self._generator, self._device = torch.Generator().manual_seed(protocol.seed), device
        self._protocol, self.rates = protocol, rates
        self.heads: dict[str, list[nn.Linear]] = {}
        for kind, d in widths.items():
            first = linear_head(d, num_classes, self._generator, device)
            self.heads[kind] = [copy.deepcopy(first) for _ in rates[kind]]

    def fit(self, examples: Examples) -> "LinearProbe":
        """Train: a cosine schedule to 0 with one step per epoch."""
        for _ in self.training(examples):
            pass
        return self

    def training(self, examples: Examples) -> Iterator[None]:
        """The same, which pauses after every epoch."""
        optimizer = self._protocol.make_optimizer(self._groups())
        schedule = CosineAnnealingLR(optimizer, self._protocol.epochs)
        for _ in range(self._protocol.epochs):
            for batch in examples.epoch(self._protocol.batch_size, self._generator):
                labels = batch.labels.to(self._device)
                loss = self._loss({kind: self._dropped(values) for kind, values in batch.kinds.items()}, labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            yield

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters of each head, with its learning rate."""
        rated = [pair for kind, heads in self.heads.items() for pair in zip(heads, self.rates[kind], strict=True)]
        return [{"params": [*head.parameters()], "lr": rate} for head, rate in rated]

    def _dropped(self, features: Tensor) -> Tensor:
        """Features, a share of which are 0 and the others enlarged."""
        kept = 1 - self._protocol.dropout
        if kept == 1:
            return features
        drawn = torch.empty(features.shape).bernoulli_(kept, generator=self._generator)
        return features * drawn.to(features.device) / kept

    def _loss(self, kinds: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Mean cross-entropies of all kinds and learning rates, added up."""
        each = [self._cross_entropy(kind, self._logits(kind, values), labels) for kind, values in kinds.items()]
        return sum(each, start=torch.zeros((), device=self._device))

    def _cross_entropy(self, kind: str, logits: Tensor, labels: Tensor) -> Tensor:
        """Of one kind, with labels ``(B,)``: of all its learning rates, added up."""
        each = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(len(self.rates[kind])), reduction="sum")
        return each / len(labels)

    def _logits(self, kind: str, features: Tensor) -> Tensor:
        """``(B, learning rates, classes)``."""
        weight, bias = self._weights(kind, features.shape[1])
        logits = F.linear(features.to(self._device), weight, bias).unflatten(1, (len(self.rates[kind]), -1))
        return logits.sigmoid() if self._protocol.sigmoid else logits

    def _weights(self, kind: str, width: int) -> tuple[Tensor, Tensor]:
        """Of all heads that read features so wide, one above the other: ``(rates · classes, d)``, and biases."""
        heads = self.heads[kind]
        return torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])

    @staticmethod
    def best(accuracies: Mapping[str, Sequence[float]]) -> dict[str, int]:
        """Kind → place of its best learning rate, by the accuracies with each."""
        return {kind: list(top1).index(max(top1)) for kind, top1 in accuracies.items()}

    @torch.no_grad()
    def accuracy(self, features: Features, top: int = 1) -> dict[str, list[float]]:
        """Kind → share of images, 0 … 1, whose class is among the ``top`` likeliest, by head of each learning rate."""
        right = {kind: torch.zeros(len(rates), device=self._device) for kind, rates in self.rates.items()}
        for rows in torch.arange(len(features)).split(4096):
            labels = features.labels[rows, None, None].to(self._device)
            for kind, values in features.kinds.items():
                likeliest = self._logits(kind, values[rows]).topk(top, dim=2).indices  # (B, rates, top)
                right[kind] += (likeliest == labels).any(2).sum(0)
        return {kind: (count / len(features)).tolist() for kind, count in right.items()}


class SharedProbe(LinearProbe):
    """One linear head that all kinds of features share: each is read by the first columns of the widest one's.

    It learns from the sum of all their losses, and has one learning rate for them; arguments as of
    :class:`LinearProbe`, the rates of all kinds being the same. S. Zhao et al., IJCV 2024: least squares on some of the
    features are the first columns of those on all only if these features are uncorrelated with the others.
    """

    def __init__(self, widths: Mapping[str, int], *options: Any) -> None:
        super().__init__(widths, *options)
        widest = max(widths, key=lambda kind: widths[kind])
        self.heads = {widest: self.heads[widest]}

    @override
    def _weights(self, kind: str, width: int) -> tuple[Tensor, Tensor]:
        [widest] = self.heads
        weight, bias = super()._weights(widest, width)
        return weight[:, :width], bias

    @staticmethod
    @override
    def best(accuracies: Mapping[str, Sequence[float]]) -> dict[str, int]:
        """The same for all: with the best mean accuracy."""
        sums = [sum(top1) for top1 in zip(*accuracies.values(), strict=True)]
        return dict.fromkeys(accuracies, sums.index(max(sums)))


class DistilledProbe(LinearProbe):
    """A linear head for each kind, of which the narrower ones learn as much from the widest one as from labels.

    S. Zhao et al., IJCV 2024, released code: (cross-entropy with labels + with the widest one's softmax, detached) / 2.
    All kinds have the same number of learning rates; heads of one place learn together.
    """

    @override
    def _loss(self, kinds: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        logits = {kind: self._logits(kind, values) for kind, values in kinds.items()}
        widest = max(kinds, key=lambda kind: kinds[kind].shape[1])
        taught = logits[widest].detach().softmax(2)
        loss = self._cross_entropy(widest, logits.pop(widest), labels)
        for kind, narrower in logits.items():
            distance = -(taught * narrower.log_softmax(2)).sum((1, 2)).mean()
            loss = loss + (self._cross_entropy(kind, narrower, labels) + distance) / 2
        return loss


def fit_linear(
    train: Examples,
    known: Examples,
    val: Features,
    num_classes: int,
    protocol: Protocol,
    device: torch.device,
    after_epoch: Callable[[LinearProbe], None] = lambda probe: None,
    make: type[LinearProbe] = LinearProbe,
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
        make: class of the classifiers.

    Returns:
        The classifiers after their last epoch, and kind → the chosen learning rate.
    """
    widths = {kind: values.shape[1] for kind, values in val.kinds.items()}

    def begin(rates: Mapping[str, Sequence[float]]) -> LinearProbe:
        return make(widths, rates, num_classes, device, protocol)

    rates = dict.fromkeys(widths, protocol.learning_rates[0])
    if len(protocol.learning_rates) > 1:
        tried = begin(dict.fromkeys(widths, protocol.learning_rates))
        found = tried.fit(train).accuracy(val)
        rates = {kind: protocol.learning_rates[place] for kind, place in make.best(found).items()}
    linear = begin({kind: [rate] for kind, rate in rates.items()})
    for _ in linear.training(known):
        after_epoch(linear)
    return linear, rates
