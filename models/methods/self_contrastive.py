"""Self-contrastive Forward-Forward (SCFF): no labels, an image beside itself against an image beside another.

X. Chen, D. Liu, J. Laydevant, J. Grollier, "Self-Contrastive Forward-Forward algorithm", Nature Communications 16, 5978
(2025), arXiv 2409.11593.

    [x, x ] positive ──► layer 1 ──detach──► [v, v ] ──► layer 2 ──detach──► …
    [x, x'] negative ──►    │                [v, v'] ──►    │
                    goodness high, low               goodness high, low

Goodness is the mean of relu(z)² over a layer's units. The network says which layers pair what they read anew: all, or
the first alone, behind which positive and negative data go on as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from losses.errors import NetworkError, UsageError
from losses.self_contrastive import neighbour, self_contrastive_loss, separated, standardised, unit_goodness
from models.features import concatenated, pooled
from models.local_learning import LocalLearning
from models.method import LabelledImages
from models.networks.chain import NetworkCallable
from models.networks.cut import Cut, cut_chain
from models.networks.pair_layers import Activity, PairLayer, PairMLP, Pairs
from models.networks.sequential import build_chain
from models.parts.rehearsal import SchedulerCallable, rehearse
from models.plan import StepPlan
from ranges import NonNegativeFloat, PositiveInt


@dataclass
class LayerRule:
    """How a layer learns.

    Args:
        above: θ⁺, above which the goodness of positive data shall be.
        below: θ⁻, below which that of negative data shall be.
        penalty: λ, of the norm of positive data's goodness.
        optimizer: of this layer, if it is another than the others'.
        scheduler: likewise; all layers have one of their own, or none.
    """

    above: float = 1.0
    below: float = 1.0
    penalty: NonNegativeFloat = 0.0
    optimizer: OptimizerCallable | None = None
    scheduler: SchedulerCallable | None = None


class SelfContrastive(LocalLearning):
    """Layers, each a block, that tell an image beside itself from an image beside another of the batch.

    The positive pair is the first pair of the data's views of an image, or, without views, the image itself twice; the
    negative one has another image's second half: of the image so many places on, a number drawn anew for each batch and
    layer. Several processes pair the images of each apart.

    Logged per block in training: ``loss``, ``positive_goodness``, ``negative_goodness`` and ``separation`` (share of
    goodnesses on their side of the thresholds).

    Args:
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data. Nothing is trained on them.
        network: ``PairMLP`` or ``PairCNN``; each layer is a block.
        rules: how the layers learn: one for all, or one for each.
        feature_pool: what ``probe`` reads of maps is averaged over squares of this side.
        training: optimizer, scheduler, epochs_per_block and the other arguments of :class:`LocalLearning`.

    Raises:
        NetworkError: a layer that does not read pairs.
        UsageError: more or fewer rules than layers, or schedulers for some of them.
    """

    charts = ("separation", "positive_goodness", "negative_goodness")

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        network: NetworkCallable = PairMLP,
        rules: list[LayerRule] | None = None,
        feature_pool: PositiveInt = 2,
        **training: Any,
    ) -> None:
        chain = build_chain(network, image_shape, num_classes)
        if strange := [name for name, unit in chain.units.named_children() if not isinstance(unit, PairLayer)]:
            raise NetworkError(
                f"Layers of {chain.name} read no pairs ({', '.join(strange)}): use models.networks.PairMLP or PairCNN."
            )
        layers = len(chain.units)
        blocks = cut_chain(chain, layers, Cut(by="units"), lambda shape: nn.Identity())
        super().__init__(network, chain, num_classes, blocks, [nn.Identity() for _ in blocks], **training)
        self.rules = _rules(rules or [LayerRule()], layers)
        self.feature_pool = feature_pool
        if self.rules[0].scheduler:
            self.schedule = replace(self.schedule, own_rates=True)

    @override
    def part_optimizer(self, k: int) -> Optimizer:
        """A new optimizer of layer k: its own, or that of all."""
        return (self.rules[k].optimizer or self.make_optimizer)(self.block_parameters(k))

    @override
    def part_scheduler(self, k: int, optimizer: Optimizer) -> LRScheduler | None:
        """A new learning-rate schedule of layer k: its own, or that of all."""
        make = self.rules[k].scheduler or self.make_scheduler
        return make(optimizer) if make else None

    @override
    def setup(self, stage: str) -> None:
        """Refuse what would train wrongly: see :meth:`LocalLearning.setup`; layers' own optimizers, too."""
        super().setup(stage)
        for rule in self.rules if stage == "fit" else ():
            make = rule.optimizer or self.make_optimizer
            rehearse(make, rule.scheduler or self.make_scheduler, self.trainer.strategy.root_device)

    def paired(self, k: int) -> bool:
        """Whether layer k (counted from 0) reads pairs."""
        return bool(self.blocks[k][-1].paired)  # type: ignore[index]  # a Sequential of one layer

    # -- the algorithm: positive data are the first half of the rows, negative data the second ---------------

    @override
    def step_input(self, batch: LabelledImages) -> tuple[int, Any]:
        """The first layer, and two views of each image; of a layer that goes on, what has arrived for it."""
        if len(batch.labels) < 2:
            raise UsageError("Negative pairs are of two images: batches hold at least 2. Choose another batch_size.")
        _, a, b = batch.views[0] if batch.views else (None, batch.images, batch.images)
        return batch.arrived or (0, (a, b))

    @override
    def block_output(self, k: int, x: Tensor | tuple[Tensor, Tensor]) -> Activity:
        """Features and pre-activations of the layer, ``(2B, …)`` of each.

        Args:
            k: the layer, from 0.
            x: of a layer that pairs two views of the images, or what the layer before makes of positive data, which is
                paired with itself; of another what that one makes of positive and of negative data; ``(B, …)`` each.
        """
        a, b = x if isinstance(x, tuple) else (x, x)
        if not self.paired(k):
            return self.blocks[k](Pairs(torch.cat([a, b])))
        other = neighbour(b, self._shift(k, len(b)))
        return self.blocks[k](Pairs(torch.cat([a, a]), torch.cat([b, other])))

    def _shift(self, k: int, count: int) -> int:
        """How many images on layer k finds its negatives: a function of the step, whichever process it learns in."""
        generator = torch.Generator().manual_seed(self.num_blocks * self.global_step + k)
        return int(torch.randint(1, count, (), generator=generator))

    @override
    def local_loss(self, k: int, features: Activity, batch: LabelledImages) -> Tensor:
        """How badly the layer's goodness tells positive from negative data."""
        rule, z = self.rules[k], features.preactivations
        positive, negative = unit_goodness(z.to(torch.promote_types(z.dtype, torch.float32))).chunk(2)
        if self.logs_this_step:
            self.record(k, "positive_goodness", positive.detach().mean())
            self.record(k, "negative_goodness", negative.detach().mean())
            self.record(k, "separation", separated(positive, negative, rule.above, rule.below))
        return self_contrastive_loss(positive, negative, rule.above, rule.below, rule.penalty)

    @override
    def hand_on(self, k: int, features: Activity) -> Tensor | tuple[Tensor, ...]:
        """Features of positive data, if the next layer pairs them anew, else of both; no gradient goes back."""
        both = features.features.detach().chunk(2)
        return both[0] if k + 1 < self.num_blocks and self.paired(k + 1) else both

    # -- beside training ------------------------------------------------------------------------

    @override
    def block_features(self, images: Tensor, last: int | None = None) -> dict[str, Tensor]:
        """What layers make of images, each beside itself.

        ``block<k>/gap``, averaged over positions; ``block<k>/units``, averaged over squares of ``feature_pool`` and
        standardised; of the last layer that is computed ``block<k>/all``, the units of all layers up to it, and of more
        than two ``block<k>/all_but_first``.
        """
        found: dict[str, Tensor] = {}
        units = []
        for name, features in zip(self.block_names[:last], self.walk(images), strict=False):
            units.append(self._units(features))
            found |= {f"{name}/gap": pooled(features), f"{name}/units": units[-1]}
        return found | concatenated(name, units)

    def _units(self, features: Tensor) -> Tensor:
        """``(B, …)`` → ``(B, d)``."""
        maps = F.avg_pool2d(features, self.feature_pool, ceil_mode=True) if features.dim() == 4 else features
        return standardised(maps).flatten(1)

    @override
    def plan(self) -> StepPlan:
        """Two pairs for each image."""
        return replace(super().plan(), views=2)


def _rules(rules: Sequence[LayerRule], layers: int) -> list[LayerRule]:
    """One for each layer."""
    if len(rules) not in (1, layers):
        raise UsageError(f"There are {len(rules)} rules for {layers} layers: give one for all, or one for each.")
    if len({rule.scheduler is None for rule in rules}) > 1:
        raise UsageError("Rules of some layers have a scheduler, of others none: give all one, or none.")
    return [*rules] * (layers // len(rules))
