"""Blockwise self-supervised learning: no labels, every block has a projector and a loss on pairs of views.

S. A. Siddiqui, D. Krueger, Y. LeCun, S. Deny, "Blockwise Self-Supervised Learning at Scale", TMLR 2024
(arXiv 2302.01647): Barlow Twins, SimCLR or VICReg in each of the blocks, all at once.

    view a ──► block 1 ──detach──► block 2 ──detach──► … ──► block K
    view b ──►    │                   │                         │
          pooling head, projector   …                         …          (one head for both views)
                  │                   │                         │
            L(z_a, z_b)            L(z_a, z_b)               L(z_a, z_b)

Both views pass block k, its loss goes back and its graph is freed before block k + 1 sees them. K = 1 is the
ordinary method with the same head.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightly.loss import BarlowTwinsLoss
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from losses import SubsampledNTXent, correlation_parts, largest_deviation, pretext_top1
from losses.errors import UsageError
from losses.processes import gathered
from models.features import pooled
from models.local_learning import LocalLearning, TrainingError
from models.method import LabelledImages, view_pairs
from models.networks.chain import NetworkCallable
from models.networks.cut import Cut, block_shapes, cut_chain
from models.networks.heads.embeddings import BiasFreeProjector, EmbeddingHead, ProjectorCallable
from models.networks.heads.expansion import ConvExpansion, full_precision
from models.networks.heads.pooling import PoolingCallable
from models.networks.layers.noise import FeatureNoise
from models.networks.sequential import build_chain
from models.parts.difficulty import Difficulty
from models.plan import StepPlan
from ranges import PositiveFloat, PositiveInt

LossCallable = Callable[[], nn.Module]
"""Makes one block's loss: (embeddings of view a, of view b) → scalar."""

Pair = tuple[Tensor, Tensor]
"""Something of view a, the same of view b."""

_COLLAPSED = 1e-6


class BlockwiseSSL(LocalLearning):
    """K blocks, each with a pooling head, a projector and a self-supervised loss of its own.

    Logged per block in training: ``loss``, ``pretext_top1`` (share of images whose other view is the nearest of the
    batch), ``invariance`` and ``redundancy`` (the sums of the Barlow Twins loss, whatever the loss is) and
    ``deviation`` (largest standard deviation of an embedding's dimension over the batch; 0 is collapse).

    Args:
        network: the network, a class from ``models.networks``; its classifier is not used.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data. Nothing is trained on them.
        num_blocks: K; 1 is end-to-end training.
        cut: where to cut.
        loss: class of the loss, made once per block: ``lightly.loss.BarlowTwinsLoss``, ``…NTXentLoss``,
            ``…VICRegLoss``, ``losses.SubsampledNTXent``.
        loss_scale: factor on every loss; with LARS it matters for biases, BatchNorm and weight decay only.
        pooling: class of the pooling head: ``ConvExpansion`` (CbE + GSP), ``GlobalPooling``, ``LocalPooling``.
        expand_dim: E, what ConvExpansion and LocalPooling make of any block's channels.
        projector: class of the projector.
        noise: on every block's output in training, read by its own head and by the next block: ``FeatureNoise``;
            none by default.
        concatenate_views: send both views through a block as one batch, so that BatchNorm sees them together;
            the published code sends them one after the other.
        difficulty: how hard each block's task is; the same for all by default.
        training: optimizer, scheduler and the other arguments of :class:`LocalLearning`.

    Raises:
        NetworkError: the network cannot be cut as asked; a pooling head does not fit the features.
        UsageError: a difficulty that does not fit the loss or the number of blocks.
    """

    charts = ("pretext_top1", "deviation")

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        num_blocks: int = 4,
        cut: Cut = Cut(),
        loss: LossCallable = BarlowTwinsLoss,
        loss_scale: PositiveFloat = 1.0,
        pooling: PoolingCallable = ConvExpansion,
        expand_dim: PositiveInt = 512,
        projector: ProjectorCallable = BiasFreeProjector,
        noise: FeatureNoise | None = None,
        concatenate_views: bool = False,
        difficulty: Difficulty | None = None,
        **training: Any,
    ) -> None:
        def make_head(shape: tuple[int, ...]) -> EmbeddingHead:
            return EmbeddingHead(pooling, projector, shape, expand_dim)

        chain = build_chain(network, image_shape, num_classes)
        blocks = cut_chain(chain, num_blocks, cut, make_head)
        heads = [make_head(shape) for shape in block_shapes(chain, blocks)]
        super().__init__(network, chain, num_classes, blocks, heads, **training)
        self.losses = nn.ModuleList(loss() for _ in blocks)
        self.noise, self.concatenate_views, self.loss_scale = noise or nn.Identity(), concatenate_views, loss_scale
        self.make_loss, self.make_projector = loss, projector
        self.difficulty = difficulty or Difficulty("constant_full")
        self.difficulties = self.difficulty.of_blocks(num_blocks)
        self.loss_weights = self._temper([*self.losses])
        self._strengths = [1.0] * num_blocks
        self._deviations: dict[int, Tensor] = {}

    def _temper(self, losses: list[Any]) -> list[float]:
        """Set the temperature of every block's loss; the factors that keep the scale of its gradients."""
        kind, easy = type(losses[0]).__name__, self.difficulty.easy_temperature
        if getattr(losses[0], "temperature", 1) <= 0:  # lightly's losses only refuse 0
            raise UsageError(f"The temperature of {kind} must be above 0, not {losses[0].temperature:g}.")
        if self.difficulty.easy_negatives is not None and not isinstance(losses[0], SubsampledNTXent):
            raise UsageError(f"difficulty.easy_negatives needs losses.SubsampledNTXent; {kind} takes all negatives.")
        if easy is None:
            return [1.0] * len(losses)
        if not hasattr(losses[0], "temperature"):
            raise UsageError(
                f"difficulty.easy_temperature needs a contrastive loss: {kind} has no temperature. Use "
                "lightly.loss.NTXentLoss."
            )
        full = losses[0].temperature
        if easy <= full:
            raise UsageError(
                f"difficulty.easy_temperature must be above the loss's own {full:g}, which is harder, not {easy:g}."
            )
        factors = [(easy / full) ** (1 - d) for d in self.difficulties]
        for loss, factor in zip(losses, factors, strict=True):
            loss.temperature = full * factor
        return factors

    # -- the algorithm: what goes through the blocks is, per strength of views, a pair -----------------

    @override
    def step_input(self, batch: LabelledImages) -> tuple[int, Any]:
        """The first block; the pairs of views that some block takes, by their strength."""
        pairs = view_pairs(batch)
        self._strengths = self.difficulty.view_strengths(self.num_blocks, list(pairs))
        taken = set(self._strengths[: self.learners.stop])
        return batch.arrived or (0, {strength: pairs[strength] for strength in taken})

    @override
    def block_output(self, k: int, x: Mapping[float, Pair]) -> dict[float, Pair]:
        """What block k makes of its own views and, without learning from them, of those that later blocks take."""
        own = self._strengths[k]
        return {s: self._features(k, pair) if s == own else self._passed(k, pair) for s, pair in x.items()}

    @override
    def local_loss(self, k: int, features: Mapping[float, Pair], batch: LabelledImages) -> Tensor:
        """Loss of block k's embeddings of its two views, in float32 at least."""
        a, b = features[self._strengths[k]]
        z_a, z_b = self.heads[k](a), self.heads[k](b)
        with full_precision(z_a):  # squares underflow in half precision
            z_a, z_b = (z.to(torch.promote_types(z.dtype, torch.float32)) for z in (z_a, z_b))
            self._watch(k, z_a.detach(), z_b.detach())
            if not getattr(self.losses[k], "gather_distributed", False):  # lightly's way, each loss has one of its own
                z_a, z_b = gathered(z_a), gathered(z_b)
            return self.loss_scale * self.loss_weights[k] * self.pair_loss(k, z_a, z_b, a)

    def pair_loss(self, k: int, z_a: Tensor, z_b: Tensor, features: Tensor) -> Tensor:
        """Loss of block k (counted from 0); what a method of your own overrides.

        Args:
            k: the block.
            z_a: embeddings ``(B, D)`` of view a, float32 or float64; of several processes, those of all.
            z_b: embeddings of view b.
            features: what the block made of view a, ``(B, C, H, W)``; this process's.
        """
        loss = self.losses[k]
        if not isinstance(loss, SubsampledNTXent):
            try:
                return loss(z_a, z_b)
            except TypeError as fault:
                raise UsageError(f"{type(loss).__name__} is no loss of two views' embeddings: {fault}.") from fault
        if self.difficulty.easy_negatives is not None:
            loss.negatives = self.difficulty.negatives(self.difficulties[k], 2 * len(z_a) - 2)
        images = gathered(pooled(features).detach())  # negatives are ranked by what the block makes of the images
        return loss(z_a, z_b, images)

    @override
    def hand_on(self, k: int, features: Mapping[float, Pair]) -> dict[float, Pair]:
        """The pairs that later blocks take; no gradient goes back."""
        later = set(self._strengths[k + 1 : self.learners.stop])
        return {s: (a.detach(), b.detach()) for s, (a, b) in features.items() if s in later}

    def _features(self, k: int, pair: Pair) -> Pair:
        """Both views through block k, with noise."""
        if self.concatenate_views:
            a, b = self.blocks[k](torch.cat(pair)).chunk(2)
            return self.noise(a), self.noise(b)
        a, b = pair
        return self.noise(self.blocks[k](a)), self.noise(self.blocks[k](b))

    def _passed(self, k: int, pair: Pair) -> Pair:
        """The same for views that block k does not learn from: BatchNorm forgets them."""
        with torch.no_grad(), _frozen_statistics(self.blocks[k]):
            return self._features(k, pair)

    # -- watching ------------------------------------------------------------------------------------

    def _watch(self, k: int, z_a: Tensor, z_b: Tensor) -> None:
        self._deviations[k] = largest_deviation(z_a)
        if self.logs_this_step:
            invariance, redundancy = correlation_parts(z_a, z_b)
            self.record(k, "invariance", invariance)
            self.record(k, "redundancy", redundancy)
            self.record(k, "pretext_top1", pretext_top1(z_a, z_b))
            self.record(k, "deviation", self._deviations[k])

    @override
    def on_train_batch_end(self, outputs: object, batch: LabelledImages, batch_idx: int) -> None:
        """Stop at a loss that is no number or at collapsed embeddings; log; step the schedules."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        deviations, self._deviations = self._deviations, {}
        for k, deviation in deviations.items():
            if deviation < _COLLAPSED:
                raise TrainingError(
                    f"{self.block_names[k]} has collapsed at step {self.global_step}: all images of the batch have one "
                    "embedding. Lower the learning rate, or give it a loss that keeps variance; the checkpoints of "
                    "earlier epochs are untouched."
                )

    # -- beside training -------------------------------------------------------------------------------

    @override
    def block_features(self, images: Tensor, last: int | None = None) -> dict[str, Tensor]:
        """``block<k>/gap`` and, if its head expands them, ``block<k>/cbe`` → the head's pooled features ``(B, E)``."""
        found = {}
        for name, head, features in zip(self.block_names[:last], self.heads, self.walk(images), strict=False):
            found[f"{name}/gap"] = pooled(features)
            if isinstance(pooling := getattr(head, "pooling", None), ConvExpansion):
                found[f"{name}/cbe"] = pooling(features)
        return found

    @override
    def plan(self) -> StepPlan:
        """Two views of an image; noise on the blocks' output."""
        blocks = [nn.Sequential(block, self.noise) for block in self.blocks]
        return replace(super().plan(), blocks=blocks, views=2)

    @property
    @override
    def monitor(self) -> str | None:
        """The online probe of the last block; nothing in sequential training, where that comes into being at last."""
        return None if self.schedule.lengths else f"probe_online/{self.block_names[-1]}/gap/top1"


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Within, BatchNorm layers in training mode normalise by the batch but leave their running statistics alone."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
