"""Blocks that learn by goodness: each is to be active on positive rows and quiet on negative ones.

    positive ─┐            ┌► direction ──detach──► block 2 ──► … ──► block K
              ├─► block 1 ─┤
    negative ─┘            └► goodness: high, low                           read-out: classes, of the directions

What the rows are is a method's: images with right and wrong labels, or images and hybrids. The read-out is the final
head: it learns classes, and no block learns from it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from typing_extensions import override

from losses.classification import top1
from losses.errors import NetworkError, UsageError
from losses.goodness import Goodness, PeerNormalisation, logistic_loss, separation, unit_length
from models.features import concatenated, pooled
from models.local_learning import LocalLearning
from models.method import Classifier, LabelledImages
from models.networks.chain import NetworkCallable
from models.networks.cut import Cut, block_shapes, cut_chain
from models.networks.layers.straight_through import end_straight_through
from models.networks.sequential import build_chain
from models.parts.rehearsal import rehearse
from models.plan import StepPlan
from ranges import NonNegativeFloat, PositiveInt


class Contrast(NamedTuple):
    """What goes from block to block in training.

    Attributes:
        positive: rows to be active on, ``(B, …)``.
        negative: as many to be quiet on.
        neutral: rows without a label, for the read-out; None where it has read all it will, or reads the positive ones.
        read: what the read-out reads of earlier blocks, ``(B, d)`` each.
    """

    positive: Tensor
    negative: Tensor
    neutral: Tensor | None = None
    read: tuple[Tensor, ...] = ()


class GoodnessLearning(Classifier, LocalLearning):
    """K blocks with a goodness each, and a linear softmax on their activities, without a bias, that begins at 0.

    Logged per block in training: ``separation`` (share of the rows on their side of the threshold; 0.5 is chance),
    ``positive_goodness`` and ``negative_goodness``. Evaluated: ``final``, the read-out, the model's prediction.

    Args:
        network: the network, a class from ``models.networks``; its classifier is not used.
        image_shape: ``(C, H, W)`` of what the first block reads.
        num_classes: number of classes.
        num_blocks: K; published is one layer each.
        cut: where to cut.
        goodness: what it is, and its threshold.
        normalise: hand on activities of unit length, whose goodness is gone; without, a block can copy the one before.
        peer: weight of peer normalisation, 0.03 as published, for goodness that is a sum and temperature 1.
        init: draw weights from a normal distribution with standard deviation 1/√fan_in, as published, or 1/√fan_out,
            biases 0; ``torch``: they are torch's.
        read_from: the first block, from 1, whose activities are read, and whose goodness counts in a prediction.
        readout_optimizer: of the read-out; by default as those of the blocks.
        training: optimizer, scheduler and the other arguments of :class:`LocalLearning`.

    Raises:
        NetworkError: the network cannot be cut as asked, has BatchNorm, or blocks that do not end with a ReLU although
            there is peer normalisation.
        UsageError: there is no block ``read_from``.
    """

    charts = ("separation", "positive_goodness", "negative_goodness")

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        num_blocks: PositiveInt = 3,
        cut: Cut = Cut(),
        goodness: Goodness = Goodness(),
        normalise: bool = True,
        peer: NonNegativeFloat = 0.03,
        init: Literal["fan_in", "fan_out", "torch"] = "fan_in",
        read_from: PositiveInt = 2,
        readout_optimizer: OptimizerCallable | None = None,
        **training: Any,
    ) -> None:
        if read_from > num_blocks:
            raise UsageError(
                f"Blocks are read from number {read_from} on, but there are {num_blocks}: set --model.read_from, or "
                "--model.num_blocks."
            )
        chain = build_chain(network, image_shape, num_classes)
        blocks = cut_chain(chain, num_blocks, cut, lambda _: nn.Sequential())
        _require_no_batch_norm(blocks)
        widths = [torch.Size(shape).numel() for shape in block_shapes(chain, blocks)]
        for k, block in enumerate(blocks if peer else (), start=1):
            end_straight_through(block, f"block {k}")
        if init != "torch":
            _draw_weights(blocks, init)
        heads: list[nn.Module] = [PeerNormalisation(width, peer) if peer else nn.Sequential() for width in widths]
        readout = nn.Linear(sum(widths[read_from - 1 :]), num_classes, bias=False)
        nn.init.zeros_(readout.weight)
        super().__init__(network, chain, num_classes, blocks, [*heads, readout], **training)
        self.goodness, self.normalise, self.peer, self.init = goodness, normalise, peer, init
        self.read_from, self.make_readout_optimizer, self.widths = read_from, readout_optimizer, widths

    # -- the algorithm ------------------------------------------------------------------------

    @override
    def block_output(self, k: int, x: Contrast) -> Contrast:
        """Activities of block k, of positive and negative rows in one batch."""
        neutral = None
        if x.neutral is not None:
            with torch.no_grad():  # first: what listens to blocks takes the first that it hears
                neutral = self.blocks[k](x.neutral)
        positive, negative = self.blocks[k](torch.cat([x.positive, x.negative])).chunk(2)
        return Contrast(positive, negative, neutral, x.read)

    @override
    def local_loss(self, k: int, features: Contrast, batch: LabelledImages) -> Tensor:
        """How badly goodness tells the rows apart, and the peers' term; of the read-out, the cross-entropy."""
        if k == self.num_blocks:
            logits = self.heads[k](torch.cat(features.read, 1))
            if self.logs_this_step:
                self.record(k, "top1", top1(logits, batch.labels))
            return F.cross_entropy(logits, batch.labels)
        found = [self.goodness.of(rows) for rows in (features.positive, features.negative)]
        logits = [self.goodness.logits(goodness, features.positive[0].numel()) for goodness in found]
        if self.logs_this_step:
            self.record(k, "separation", separation(*logits))
            for name, goodness in zip(("positive_goodness", "negative_goodness"), found, strict=True):
                self.record(k, name, goodness.detach().mean())
        loss = logistic_loss(*logits)
        return loss + self.heads[k](features.positive) if self.peer else loss

    @override
    def hand_on(self, k: int, features: Contrast) -> Contrast:
        """The directions of activities, detached, and with them what the read-out reads of block k."""
        seen = self.seen(features)
        read = (*features.read, _flat(seen)) if seen is not None and k + 1 >= self.read_from else features.read
        neutral = None if features.neutral is None else self.handed(features.neutral)
        return Contrast(self.handed(features.positive), self.handed(features.negative), neutral, read)

    def seen(self, features: Contrast) -> Tensor | None:
        """Rows whose activities the read-out reads; None if it has read them before."""
        return features.neutral

    def handed(self, activities: Tensor) -> Tensor:
        """What the next block reads of a block's activities."""
        activities = activities.detach()
        return unit_length(activities) if self.normalise else activities

    # -- the read-out and its optimizer -------------------------------------------------------

    @override
    def part_optimizer(self, k: int) -> Optimizer:
        """The read-out may have one of another kind."""
        if k < self.num_blocks or self.make_readout_optimizer is None:
            return super().part_optimizer(k)
        return self.make_readout_optimizer(self.block_parameters(k))

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.make_readout_optimizer:
            rehearse(self.make_readout_optimizer, self.make_scheduler, self.trainer.strategy.root_device)

    def readable(self, activities: Iterable[Tensor]) -> Tensor:
        """What the read-out reads of the activities of all blocks: their directions, side by side, ``(B, D)``."""
        return torch.cat([_flat(rows) for rows in islice(activities, self.read_from - 1, None)], 1)

    # -- beside training ------------------------------------------------------------------------

    def neutral(self, images: Tensor) -> Tensor:
        """What the first block reads of images of which no class is said."""
        return unit_length(images)

    @override
    def walk(self, images: Tensor) -> Iterator[Tensor]:
        """Activities of one block after the other, of images of which no class is said."""
        return self.passing(self.neutral(images))

    def passing(self, x: Tensor) -> Iterator[Tensor]:
        """Activities of one block after the other, of what the first one reads."""
        for block in self.blocks:
            activities = block(x)
            yield activities
            x = self.handed(activities)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """The read-out's logits ``(B, classes)``.

        Raises:
            UsageError: it has not learned yet.
        """
        if self.learned <= self.num_blocks:
            raise UsageError("The read-out has not learned yet: go on training with --ckpt_path last.")
        return self.heads[self.num_blocks](self.readable(self.walk(images)))

    @override
    def block_logits(self, images: Tensor) -> dict[str, Tensor]:
        """``final`` → the read-out's logits, once it has learned."""
        return {"final": self(images)} if self.learned > self.num_blocks else {}

    @override
    def batch_means(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """The read-out's loss."""
        return {"final/loss": F.cross_entropy(logits["final"], labels)} if "final" in logits else {}

    @property
    @override
    def monitor(self) -> str | None:
        """The read-out's accuracy."""
        return "val/final/top1"

    @override
    def block_features(self, images: Tensor, last: int | None = None) -> dict[str, Tensor]:
        """What probes read of images of which no class is said.

        ``block<k>/gap``: what block k hands on. Of the last block asked for ``block<k>/all``: the directions of the
        activities of blocks 1 … k, side by side; and ``block<k>/all_but_first``.
        """
        activities = dict(zip(self.block_names[:last], self.walk(images), strict=False))
        found = {f"{name}/gap": pooled(self.handed(rows)) for name, rows in activities.items()}
        return found | concatenated([*activities][-1], [*map(_flat, activities.values())])

    @override
    def plan(self) -> StepPlan:
        """Two rows an image, in the blocks and, which is one too many, in the read-out, which reads several blocks."""
        plan = super().plan()
        missing = sum(self.widths[self.read_from - 1 : -1])
        return replace(plan, blocks=[*plan.blocks, nn.Sequential(nn.Flatten(), nn.ZeroPad1d((missing, 0)))], views=2)


def _flat(activities: Tensor) -> Tensor:
    """Directions of activities, ``(B, d)``."""
    return unit_length(activities.detach().flatten(1))


def _require_no_batch_norm(blocks: Sequence[nn.Module]) -> None:
    if any(isinstance(layer, _BatchNorm) for block in blocks for layer in block.modules()):
        raise NetworkError(
            "BatchNorm would mix positive and negative rows: take a network without it, as an MLP with "
            "--model.network.batch_norm false."
        )


def _draw_weights(blocks: Sequence[nn.Module], fan: Literal["fan_in", "fan_out"]) -> None:
    for block in blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode=fan, nonlinearity="linear")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
