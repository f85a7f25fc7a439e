"""Optimizers with the parameter groups of the published recipes."""

from collections.abc import Iterable, Sequence
from typing import Any

from lightly.utils.lars import LARS
from torch import nn
from torch.optim import SGD, Adam

from ranges import NonNegativeFloat, PositiveFloat


class BlockLARS(LARS):
    """LARS as Barlow Twins uses it: weight decay and trust ratio for weights, neither for biases and BatchNorm.

    lightly's LARS, with the two groups made by the number of dimensions of a tensor (it applies no trust ratio to a
    group without weight decay). You et al., 2017; the rule and the groups of Siddiqui et al., 2024.

    Args:
        params: what to train.
        lr: learning rate.
        vector_lr: learning rate of tensors with one dimension, as a share of ``lr``.
        momentum: factor of the momentum buffer.
        weight_decay: of tensors with several dimensions; above 0.
        trust_coefficient: η.

    Raises:
        ValueError: no weight decay, which would switch the trust ratio off.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: NonNegativeFloat,
        vector_lr: NonNegativeFloat = 1.0,
        momentum: NonNegativeFloat = 0.9,
        weight_decay: PositiveFloat = 1e-6,
        trust_coefficient: PositiveFloat = 0.001,
    ) -> None:
        if weight_decay <= 0:
            raise ValueError("LARS needs a weight_decay above 0: lightly's leaves the trust ratio out where it is 0.")
        params = list(params)
        groups = [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0, "lr": lr * vector_lr},
        ]
        groups = [group for group in groups if group["params"]]
        super().__init__(groups, lr=lr, momentum=momentum, trust_coefficient=trust_coefficient)


def by_layer(params: Iterable[nn.Parameter], rates: Sequence[float]) -> list[dict[str, Any]]:
    """Parameter groups of the layers, each with its own learning rate. A weight with several dimensions begins one.

    Raises:
        ValueError: there are several layers, and not as many rates.
    """
    layers: list[list[nn.Parameter]] = []
    for parameter in params:
        if parameter.ndim > 1 or not layers:
            layers.append([])
        layers[-1].append(parameter)
    if len(layers) > 1 and len(layers) != len(rates):
        raise ValueError(f"rates must be the learning rates of all {len(layers)} layers, not {list(rates)}")
    return [{"params": layer, "lr": rate} for layer, rate in zip(layers, rates, strict=False)]


class LayerSGD(SGD):
    """SGD with a learning rate for each layer.

    Args:
        params: what to train, layer by layer, a weight before its bias.
        rates: learning rate of each layer.
        momentum: factor of the momentum buffer.
        weight_decay: of all parameters.

    Raises:
        ValueError: another number of rates than of layers.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        rates: list[PositiveFloat],
        momentum: NonNegativeFloat = 0.0,
        weight_decay: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(by_layer(params, rates), lr=rates[0], momentum=momentum, weight_decay=weight_decay)


class LayerAdam(Adam):
    """Adam with a learning rate for each layer.

    Args:
        params: what to train, layer by layer, a weight before its bias.
        rates: learning rate of each layer.

    Raises:
        ValueError: another number of rates than of layers.
    """

    def __init__(self, params: Iterable[nn.Parameter], rates: list[PositiveFloat]) -> None:
        super().__init__(by_layer(params, rates), lr=rates[0])
