"""Unsupervised Forward-Forward: no labels, every block is a cell that rebuilds its own input.

T. Hwang, H. Seo, S. Jung, "Employing Layerwised Unsupervised Learning to Lessen Data and Loss Requirements in
Forward-Forward Algorithms", arXiv 2404.14664 (2024). No code is public, and the paper's settings were not available:
all settings are this suite's choice.

    images v₀ ──► block 1 ──► v₁ ──detach──► block 2 ──► v₂ ──detach──► … ──► block K ──► v_K
                              │                          │                                │
                           decoder                    decoder                          decoder
                              │                          │                                │
                           ‖·− v₀‖²                   ‖· − v₁‖²                     ‖· − v_{K−1}‖²

A block ends in a normalisation of each sample's features to mean 0 and deviation 1, without weights: v is what the
decoder, the next block and classifiers read, so that no block passes on by its length how well it did.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from typing_extensions import override

from losses.errors import UsageError
from models.features import concatenated, pooled
from models.local_learning import LocalLearning
from models.method import LabelledImages
from models.networks.chain import NetworkCallable
from models.networks.cut import Cut, block_shapes, cut_chain
from models.networks.heads.cells import AutoEncoderCell, CellCallable
from models.networks.sequential import build_chain
from models.plan import StepPlan
from ranges import PositiveInt


class Encoded(NamedTuple):
    """What a block makes of its input ``(B, …)``.

    Attributes:
        source: the input, undisturbed: what the decoder shall rebuild.
        features: v of the input as the block read it: what the decoder reads.
        handed_on: v of the undisturbed input.
    """

    source: Tensor
    features: Tensor
    handed_on: Tensor


class UnsupervisedForwardForward(LocalLearning):
    """K cells, each a block and a decoder, perhaps with a discriminator, that learn from what the block reads alone.

    Logged per block in training, beside ``loss``: ``reconstruction`` (mean square error) and, of an
    :class:`AdversarialCell`, ``generator``, ``discriminator`` and ``discriminator_accuracy``.

    Args:
        network: the network, a class from ``models.networks``, best without BatchNorm; its classifier is not used.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data. Nothing is trained on them.
        num_blocks: K; 1 is an autoencoder end to end.
        cut: where to cut; decoders are not weighed, since their size depends on where their block begins.
        cell: what a block is judged by: ``AutoEncoderCell``, ``DenoisingCell``, ``AdversarialCell``.
        training: optimizer, scheduler and the other arguments of :class:`LocalLearning`; ``epochs_per_block`` trains
            the cells one after the other ("separate") instead of all on every batch ("joint").

    Raises:
        NetworkError: the network cannot be cut as asked; a decoder cannot rebuild what a block reads.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        num_blocks: PositiveInt = 3,
        cut: Cut = Cut(),
        cell: CellCallable = AutoEncoderCell,
        **training: Any,
    ) -> None:
        chain = build_chain(network, image_shape, num_classes)
        blocks = cut_chain(chain, num_blocks, cut, lambda shape: nn.Identity())
        shapes = [chain.image_shape, *block_shapes(chain, blocks)]
        for block, (width, *_) in zip(blocks, shapes[1:], strict=True):
            block.add_module("norm", nn.GroupNorm(1, width, affine=False))
        cells = [cell(read, made) for read, made in pairwise(shapes)]
        super().__init__(network, chain, num_classes, blocks, cells, **training)
        self.make_cell = cell

    def cell(self, k: int) -> AutoEncoderCell:
        """Decoder, and what else belongs to the loss, of block k (counted from 0)."""
        cell = self.heads[k]
        assert isinstance(cell, AutoEncoderCell)
        return cell

    # -- the algorithm ------------------------------------------------------------------------

    @override
    def block_output(self, k: int, x: Tensor) -> Encoded:
        """Block k's input and its features; those of a cell that learns from noise also without any."""
        if not (self.cell(k).disturbs and k in self.learners):
            features = super().block_output(k, x)
            return Encoded(x, features, features)
        with torch.no_grad():  # first: an online probe takes a batch's first features
            handed_on = super().block_output(k, x)
        return Encoded(x, super().block_output(k, self.cell(k).disturbed(x)), handed_on)

    @override
    def local_loss(self, k: int, features: Encoded, batch: LabelledImages) -> Tensor:
        """How badly block k's input is rebuilt from its features, as its cell judges."""
        loss, parts = self.cell(k).judge(features.features, features.source)
        for name, value in parts.items():
            self.record(k, name, value.detach())
        return loss

    @override
    def hand_on(self, k: int, features: Encoded) -> Tensor:
        """V of block k's undisturbed input, detached, as it was before the block's step."""
        return features.handed_on.detach()

    @override
    def part_optimizer(self, k: int) -> Optimizer:
        """One optimizer; a discriminator is a group with its own rate, as if it had one of its own.

        Raises:
            UsageError: the optimizer does not have an option that the group sets.
        """
        apart = self.cell(k).learning_apart()
        theirs = {parameter for group in apart for parameter in group["params"]}
        shared = [parameter for parameter in self.block_parameters(k) if parameter not in theirs]
        optimizer = self.make_optimizer([{"params": shared}, *apart])
        for option in {option for group in apart for option in group} - {"params", *optimizer.defaults}:
            raise UsageError(
                f"{type(self.cell(k)).__name__} sets {option} of its discriminator, which {type(optimizer).__name__} "
                "does not have: choose --model.optimizer AdamW."
            )
        return optimizer

    # -- beside training ------------------------------------------------------------------------

    @override
    def block_features(self, images: Tensor, last: int | None = None) -> dict[str, Tensor]:
        """What classifiers read of v.

        ``block<k>/gap``: averaged over positions; of maps also ``block<k>/latent``, averaged over 4×4 regions. Of the
        last block asked for ``block<k>/all``: blocks 1 … k concatenated; and ``block<k>/all_but_first``.
        """
        found: dict[str, Tensor] = {}
        latents: list[Tensor] = []
        for name, features in zip(self.block_names[:last], self.walk(images), strict=False):
            found[f"{name}/gap"] = pooled(features)
            latents.append(latent(features))
            if features.dim() == 4:
                found[f"{name}/latent"] = latents[-1]
        return found | concatenated(name, latents)

    @override
    def plan(self) -> StepPlan:
        """A block that learns from noise goes forward twice."""
        plan = super().plan()
        twice = [back * self.cell(k).disturbs for k, back in enumerate(plan.backward_passes)]
        return replace(plan, forward_passes=[*map(sum, zip(plan.forward_passes, twice, strict=True))])


def latent(features: Tensor, grid: int = 4) -> Tensor:
    """Maps ``(B, C, H, W)`` averaged over regions, at most ``grid`` × ``grid``, and flattened; vectors as they are."""
    if features.dim() == 4:
        rows, columns = features.shape[2:]
        features = F.adaptive_avg_pool2d(features, (min(rows, grid), min(columns, grid)))
    return features.flatten(1)
