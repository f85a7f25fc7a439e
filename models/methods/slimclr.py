"""SlimCLR: one contrastive training, networks of several widths.

S. Zhao, L. Zhu, X. Wang, Y. Yang, "Slimmable Networks for Contrastive Self-supervised Learning", IJCV 2024
(arXiv 2209.15525). The narrower networks are the first channels of the whole one; end to end, K = 1.

    view a ──► width 1.0  ──► head ──► cosines ──► InfoNCE · λ₁
          └──► width 0.5  ──► head ──► cosines ──► InfoNCE, and as width 1.0 has them   (from epoch S on)
          └──► width 0.25 ──► …            ▲
    view b ──► key encoder, width 1.0 ──► keys, queue
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightly.models.modules.heads import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from typing_extensions import override

from losses.errors import UsageError
from losses.info_nce import ContrastCallable, QueueContrast, distillation, info_nce
from losses.width_weights import Weighting, whole_first
from models.features import pooled
from models.local_learning import LocalLearning
from models.method import LabelledImages, view_pairs
from models.networks.chain import Chain, NetworkCallable
from models.networks.cut import block_shapes
from models.networks.heads.embeddings import EmbeddingHead, ProjectorCallable
from models.networks.heads.expansion import full_precision
from models.networks.heads.pooling import GlobalPooling
from models.networks.layers.slimmable import Slimmable, Width
from models.networks.sequential import build_chain
from models.networks.slimmed import EveryWidth, narrowed, require_all_widths, slim
from models.parts.gradient_ratio import gradient_ratios
from models.plan import StepPlan
from ranges import NonNegativeInt, PositiveFloat, Share

Views = Sequence[Tensor]
"""Something of one view of each image, or of both."""


class SlimCLR(LocalLearning):
    """One block, whose first channels are networks too, and learn with it.

    Logged per width in training, as ``train/block1/w0.5/…``: ``loss``, and ``pretext_top1``, the share of embeddings
    whose positive is the nearest; of the narrower ones ``gradient_ratio`` and ``gradient_ratio_of_means``
    (:mod:`models.parts.gradient_ratio`).

    Args:
        network: the network, a class from ``models.networks``; its classifier is not used.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data. Nothing is trained on them.
        widths: shares of the channels, from 1.0 downwards.
        contrast: class of what embeddings are compared with: ``losses.QueueContrast`` (MoCo v2), or
            ``losses.PairContrast`` (SimCLR).
        projector: class of the projector, on features averaged over positions; lightly's, made slimmable.
        start_epoch: S, epoch (counted from 0) from which the narrower widths learn ("slow start"); published is half of
            the epochs.
        distillation: α, share of a narrower width's loss that is the distance of its cosines to the whole network's.
        distillation_temperature: τ, of these cosines.
        distillation_scale: factor on that distance; τ² by default.
        weighting: weights of the widths' losses: ``losses.whole_first`` (published), ``losses.all_equal``,
            ``losses.by_width``.
        training: optimizer, scheduler and the other arguments of :class:`LocalLearning`.

    Attributes:
        width: at which the network runs now.
        key_encoder: the block and its head as a running mean; None without keys.

    Raises:
        NetworkError: widths that do not fall from 1.0, or at which the network does not run.
        UsageError: compilation.
    """

    charts = ("w*/pretext_top1", "w*/gradient_ratio")

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        widths: Sequence[PositiveFloat] = (1.0, 0.75, 0.5, 0.25),
        contrast: ContrastCallable = QueueContrast,
        projector: ProjectorCallable = MoCoProjectionHead,
        start_epoch: NonNegativeInt = 0,
        distillation: Share = 0.5,
        distillation_temperature: PositiveFloat = 5.0,
        distillation_scale: PositiveFloat | None = None,
        weighting: Weighting = whole_first,
        **training: Any,
    ) -> None:
        if training.get("compile"):
            raise UsageError("A network of several widths is not compiled: leave compile out.")
        chain, width = build_chain(network, image_shape, num_classes), Width(widths)
        [shape] = block_shapes(chain, [chain.units])
        head = EmbeddingHead(GlobalPooling, projector, shape, shape[0])
        _, (dim,) = block_shapes(chain, [chain.units, head])
        block = slim(chain.units, width, reads_all=True)
        slim(head, width, gives_all=True)
        require_all_widths(nn.Sequential(block, head), width, chain.image_shape, chain.name)
        super().__init__(network, chain, num_classes, [block], [head], **training)
        self.width, self.contrast = width, contrast(dim)
        self.make_contrast, self.make_projector = contrast, projector
        self.start_epoch, self.weighting = start_epoch, weighting
        self.distillation, self.distillation_temperature = distillation, distillation_temperature
        self.distillation_scale = distillation_temperature**2 if distillation_scale is None else distillation_scale
        self.key_encoder = None if self.contrast.momentum is None else copy.deepcopy(self.part_modules(0))
        if self.key_encoder:
            deactivate_requires_grad(self.key_encoder)

    # -- the algorithm ------------------------------------------------------------------------

    @override
    def step_input(self, batch: LabelledImages) -> tuple[int, Any]:
        """The block, and the views of each image that it embeds."""
        *_, pair = view_pairs(batch).values()
        return 0, pair[: self.contrast.views]

    @property
    def learning_widths(self) -> Sequence[float]:
        """Widths that learn in this epoch: until S the whole network alone."""
        return self.width.widths[: None if self.current_epoch >= self.start_epoch else 1]

    @override
    def block_output(self, k: int, x: Views) -> dict[float, Views]:
        """Width → features of the views, of all that learn."""
        features: dict[float, Views] = {}
        for width in self.learning_widths:
            with self.width.at(width):
                features[width] = [self.blocks[k](view) for view in x]
        return features

    @override
    def local_loss(self, k: int, features: Mapping[float, Views], batch: LabelledImages) -> Tensor:
        """Weighted sum of the losses of all widths that learn, in float32 at least."""
        keys = self.keys(batch)
        cosines = {width: self._cosines(k, width, views, keys) for width, views in features.items()}
        if keys is not None:
            self.contrast.enqueue(keys)
        losses = self.width_losses(cosines)
        for width, loss in losses.items():
            self.record(k, f"{_name(width)}/loss", loss.detach())
            self.record(k, f"{_name(width)}/pretext_top1", cosines[width].argmax(dim=1).eq(0).float().mean())
        weights = self.weighting([*losses])
        return torch.stack([weight * loss for weight, loss in zip(weights, losses.values(), strict=True)]).sum()

    def width_losses(self, cosines: Mapping[float, Tensor]) -> dict[float, Tensor]:
        """Width → its loss: InfoNCE; of the narrower ones a share is the distance to the whole network's cosines.

        Args:
            cosines: width → ``(rows, columns)``, the positives first; width 1.0 among them.
        """
        losses = {width: info_nce(found, self.contrast.temperature) for width, found in cosines.items()}
        if not self.distillation:
            return losses
        for width in [width for width in losses if width < 1]:
            distance = distillation(cosines[width], cosines[1.0], self.distillation_temperature)
            losses[width] = torch.lerp(losses[width], self.distillation_scale * distance, self.distillation)
        return losses

    @override
    def hand_on(self, k: int, features: Any) -> None:
        """Nothing: there is one block."""

    @torch.no_grad()
    def keys(self, batch: LabelledImages) -> Tensor | None:
        """The second views as the key encoder embeds them at full width, ``(B, D)``, after it followed the network."""
        if self.key_encoder is None:
            return None
        update_momentum(self.part_modules(0), self.key_encoder, self.contrast.momentum)
        *_, (_, view) = view_pairs(batch).values()
        block, head = self.key_encoder
        return _embedded(head(block(view)))

    def _cosines(self, k: int, width: float, views: Views, keys: Tensor | None) -> Tensor:
        with self.width.at(width):
            embeddings = [_embedded(self.heads[k](features)) for features in views]
        with full_precision(embeddings[0]):
            return self.contrast(embeddings, keys)

    # -- watching -----------------------------------------------------------------------------

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log how the gradient divides between each narrower network and the rest; clip."""
        if self.logs_this_step:
            layers = [layer for layer in self.part_modules(0).modules() if isinstance(layer, Slimmable)]
            for width in self.width.widths[1:]:
                for name, value in gradient_ratios(layers, width).items():
                    self.record(0, f"{_name(width)}/{name}", value)
        super().on_before_optimizer_step(optimizer)

    # -- beside training ------------------------------------------------------------------------

    @override
    def block_features(self, images: Tensor, last: int | None = None) -> dict[str, Tensor]:
        """Of the whole network ``block1/gap`` and ``block1/embedding``; of width w ``block1/w0.5`` and so on.

        Features are averaged over positions; the embedding is what the loss compares, not yet of length 1, ``(B, D)``.
        """
        found = {}
        for width, kind in zip(self.width.widths, self.nested_features, strict=True):
            with self.width.at(width):
                features = self.blocks[0](images)
                found[kind] = pooled(features)
                found[f"block1/embedding{f'_{_name(width)}' if width < 1 else ''}"] = self.heads[0](features)
        return found

    @property
    @override
    def nested_features(self) -> list[str]:
        """Those of all widths."""
        return [f"block1/{_name(width) if width < 1 else 'gap'}" for width in self.width.widths]

    def narrow(self, width: float) -> Chain:
        """The network at one width, as a chain of plain layers, which needs nothing of this method any more.

        Outputs of its units are those of the width, in training mode too. The classifier is drawn anew.

        Args:
            width: one of ``widths``.

        Raises:
            NetworkError: there is no such width.
        """
        chain = build_chain(self.make_network, self.image_shape, self.num_classes)
        with self.width.at(width):
            chain.units = nn.Sequential(OrderedDict(narrowed(self.blocks[0], width).named_children()))
            chain.classifier = narrowed(slim(chain.classifier, self.width, gives_all=True), width)
        chain.name += f" at width {width:g}"
        return chain.to(self.device)

    @override
    def plan(self) -> StepPlan:
        """All widths, of each view that they embed; the key encoder's forward pass is left out."""
        block, head = (EveryWidth(part, self.width) for part in self.part_modules(0))
        return replace(super().plan(), blocks=[block], heads=[head], views=self.contrast.views)

    @property
    @override
    def why_one_process(self) -> str:
        return "compares the images of one process, and keeps one queue and one key encoder there"

    @property
    @override
    def monitor(self) -> str:
        """The online probe of the whole network."""
        return "probe_online/block1/gap/top1"


def _name(width: float) -> str:
    return f"w{width:g}"


def _embedded(z: Tensor) -> Tensor:
    """Embeddings of length 1, in float32 at least."""
    with full_precision(z):
        return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1)
