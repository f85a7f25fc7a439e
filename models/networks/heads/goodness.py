"""A head without weights: the channels themselves are the classes' votes.

    channels of a block ──► one set per class ──► mean over a set's channels and positions: goodness of the class

Forward-Forward (G. Hinton, arXiv 2212.13345) without negative data: what is learned is which class's set of channels is
the most active, by cross-entropy over the sets' goodnesses.
"""

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from models.networks.heads.classifiers import Head
from models.networks.layers.class_sets import require_class_sets
from models.networks.layers.pooling import GlobalAveragePool
from ranges import PositiveFloat


class ClassGoodness(Head):
    """Goodness of each class, ``(B, classes)``, as its logit: it has no weights, so a block's own ones do all.

    Class c owns the c-th of equally large sets of neighbouring channels.

    Args:
        feature_shape: ``(C, H, W)`` or ``(C,)``.
        num_classes: number of classes; must divide C.
        of: what is averaged: ``activities`` as they are (DeeperForward: L. Sun et al., ICLR 2025), or their
            ``squares`` (channel-wise competitive learning: A. Papachristodoulou et al., AAAI 2024, arXiv 2312.12668).
        temperature: goodnesses are divided by it; in both papers 1.

    Raises:
        NetworkError: the classes do not divide the channels.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        num_classes: int,
        of: Literal["activities", "squares"] = "activities",
        temperature: PositiveFloat = 1.0,
    ) -> None:
        super().__init__(*([GlobalAveragePool()] if len(feature_shape) == 3 else []))
        require_class_sets(feature_shape[0], num_classes)
        self.num_classes, self.squares, self.temperature = num_classes, of == "squares", temperature

    @override
    def forward(self, features: Tensor) -> Tensor:
        """Features ``(B, C, H, W)`` or ``(B, C)`` → logits ``(B, classes)``, in float32 at least."""
        x = features.to(torch.promote_types(features.dtype, torch.float32))
        activity = super().forward(x.square() if self.squares else x)  # (B, C)
        return activity.unflatten(1, (self.num_classes, -1)).mean(2) / self.temperature
