"""InfoPro: local modules that propagate information, the strongest depth-wise baseline of GN-DGL.

Y. Wang, Z. Ni, S. Song, L. Yang, G. Huang, "Revisiting Locally Supervised Learning: an Alternative to
End-to-end Training", ICLR 2021. Every block but the last keeps what the image needs to be rebuilt, and
what tells the classes apart:

    block k ──► decoder ──► image        λ₁ · binary cross-entropy with the image
       └──────► auxiliary head ──► z     λ₂ · supervised contrast of z, or cross-entropy
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from losses import top1
from losses.errors import UsageError
from losses.processes import gathered
from models.method import LabelledImages
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.chain import initialise_convolutions
from models.networks.heads.classifiers import AuxHead, HeadCallable
from ranges import NonNegativeFloat, PositiveInt

Ends = tuple[tuple[NonNegativeFloat, NonNegativeFloat], tuple[NonNegativeFloat, NonNegativeFloat]]
"""(λ₁, λ₂) of the first and of the last but one block."""

PUBLISHED_WEIGHTS: Mapping[int, Ends] = {
    2: ((5, 1), (0, 0)),
    4: ((6, 0), (1, 2)),
    8: ((5, 0), (0, 2)),
    16: ((5, 0.05), (0.2, 0.5)),
}
"""By K; ResNet-32 on CIFAR-10, contrast."""

_TEMPERATURE = 0.07


class InfoPro(DecoupledGreedy):
    """InfoPro: blocks 1 … K − 1 reconstruct the image and contrast the classes; the last one classifies.

    In contrast mode only the last block predicts: there is no accuracy of the others and no ensemble. With
    ``loss: softmax`` all do. The reconstruction's loss keeps two more images than ``cost`` counts.

    Args:
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        image_mean: of each channel, by which images were normalised; the command line takes it from the data.
        image_std: likewise.
        num_blocks: K.
        num_groups: must be 1: InfoPro has no neuron groups.
        head: auxiliary head of blocks 1 … K − 1, a class from ``models.networks``.
        loss: what the auxiliary head is trained on: ``contrast`` (supervised, temperature 0.07) or
            ``softmax`` (the output loss, cross-entropy by default).
        weights: [[λ₁, λ₂] of the first block, [λ₁, λ₂] of block K − 1], linear in between; the
            published ones if none are given.
        embedding: width of z in contrast mode.
        decoder_width: hidden channels of the decoder.
        options: network, cut, last_head, optimizer and the other arguments of :class:`DecoupledGreedy`.

    Raises:
        UsageError: neuron groups, or no published weights for this K.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        image_mean: Sequence[float],
        image_std: Sequence[float],
        num_blocks: int = 2,
        num_groups: int = 1,
        head: HeadCallable = AuxHead,
        loss: Literal["contrast", "softmax"] = "contrast",
        weights: Ends | None = None,
        embedding: PositiveInt = 128,
        decoder_width: PositiveInt = 12,
        **options: Any,
    ) -> None:
        if num_groups != 1:
            raise UsageError(
                f"InfoPro cuts a network by depth only: num_groups must be 1, not {num_groups}. For neuron groups use "
                "models.NeuronGroups."
            )
        block_weights = _block_weights(num_blocks, weights)

        def make_head(shape: tuple[int, ...], num_classes: int) -> Any:  # no Head: it has two outputs
            outputs = embedding if loss == "contrast" else num_classes
            return InfoProHead(head(shape, outputs), shape, image_shape, decoder_width)

        super().__init__(image_shape=image_shape, num_blocks=num_blocks, head=make_head, final_head=None, **options)
        self.weights, self._contrast = block_weights, _contrast() if loss == "contrast" else None
        self.image_mean = nn.Buffer(torch.tensor(image_mean).view(-1, 1, 1), persistent=False)
        self.image_std = nn.Buffer(torch.tensor(image_std).view(-1, 1, 1), persistent=False)

    losses_read_images: ClassVar[bool] = True

    @override
    def local_loss(self, k: int, features: Tensor, batch: LabelledImages) -> Tensor:
        """λ₁ times the reconstruction's loss plus λ₂ times the head's; of the last block, its output loss."""
        if k == self.num_blocks - 1:
            return super().local_loss(k, features, batch)
        reconstruction, z = self.heads[k](features)
        image = (batch.images * self.image_std + self.image_mean).clamp(0, 1)
        rebuild = F.binary_cross_entropy_with_logits(reconstruction, image)
        tell_apart = self._tell_apart(z, batch.labels)
        if self.logs_this_step:
            self.record(k, "reconstruction", rebuild.detach())
            self.record(k, "contrast" if self._contrast else "softmax", tell_apart.detach())
            if not self._contrast:
                self.record(k, "top1", top1(z, batch.labels))
        first, second = self.weights[k]
        return first * rebuild + second * tell_apart

    def _tell_apart(self, z: Tensor, labels: Tensor) -> Tensor:
        """The contrast of embeddings, each with those of the whole batch, or the loss of logits."""
        if self._contrast is None:
            return self.prediction_loss(z, labels)
        return self._contrast(gathered(z.float()), gathered(labels))

    @override
    def block_prediction(self, k: int, features: Tensor) -> Tensor | None:
        """Of the last block, and in softmax mode of all."""
        head = self.heads[k]
        if not isinstance(head, InfoProHead):
            return head(features)
        return None if self._contrast else head.aux(features)


def _contrast() -> nn.Module:
    from pytorch_metric_learning.losses import SupConLoss  # takes seconds to import

    return SupConLoss(_TEMPERATURE)


def _block_weights(num_blocks: int, ends: Ends | None) -> list[tuple[float, ...]]:
    """(λ₁, λ₂) of blocks 1 … K − 1, linear between those of the first and the last of them."""
    if num_blocks == 1:
        return []
    if ends is None and num_blocks not in PUBLISHED_WEIGHTS:
        known = ", ".join(map(str, PUBLISHED_WEIGHTS))
        raise UsageError(
            f"InfoPro's weights are published for K = {known}, not {num_blocks}. Give --model.weights "
            "[[first λ₁, first λ₂], [last λ₁, last λ₂]]."
        )
    first, last = PUBLISHED_WEIGHTS[num_blocks] if ends is None else ends
    steps = [k / max(num_blocks - 2, 1) for k in range(num_blocks - 1)]
    return [tuple((1 - t) * a + t * b for a, b in zip(first, last, strict=True)) for t in steps]


class InfoProHead(nn.Module):
    """Decoder and auxiliary head of one block.

    The decoder of the published code: the features enlarged to the image's size (bilinear, corners aligned), then two
    3×3 convolutions with biases, C → width with BatchNorm and ReLU, width → image channels.
    """

    def __init__(
        self, aux: nn.Module, feature_shape: tuple[int, ...], image_shape: tuple[int, int, int], width: int
    ) -> None:
        super().__init__()
        self.aux = aux
        self.decoder = nn.Sequential(
            nn.Upsample(image_shape[1:], mode="bilinear", align_corners=True),
            nn.Conv2d(feature_shape[0], width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, image_shape[0], 3, padding=1),
        )
        initialise_convolutions(self.decoder)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The image ``(B, C, H, W)`` before its sigmoid, and what the auxiliary head says."""
        return self.decoder(features), self.aux(features)
