"""A layer of outputs for targets that are no classes."""

import math

from torch import nn

from models.networks.heads.classifiers import Head
from ranges import Share


class OutputLayer(Head):
    """Linear layer from all features to N outputs, clamped to 0 … 1 ("hard sigmoid") or as they are.

    Args:
        feature_shape: of one sample.
        outputs: N.
        clamped: whether outputs are clamped.
        dropout: share of the features dropped in training.
    """

    def __init__(
        self, feature_shape: tuple[int, ...], outputs: int, clamped: bool = True, dropout: Share = 0.0
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten(), *([nn.Dropout(dropout)] if dropout else [])]
        layers += [nn.Linear(math.prod(feature_shape), outputs), *([nn.Hardtanh(0.0, 1.0)] if clamped else [])]
        super().__init__(*layers)
