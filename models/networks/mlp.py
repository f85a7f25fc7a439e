"""Multilayer perceptron: one unit per hidden layer."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import nn
from typing_extensions import override

from models.networks.chain import Chain, rectifier
from ranges import NonNegativeFloat, PositiveInt, Share


def hidden_units(
    widths: Sequence[int],
    batch_norm: bool,
    dropout: float,
    negative_slope: float,
    input_dropout: float = 0.0,
    clamped: bool = False,
) -> dict[str, nn.Module]:
    """Fully connected units ``fc1, fc2, …`` between successive widths, the first of which is that of the input."""
    units: dict[str, nn.Module] = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        layers: list[nn.Module] = _vectors(input_dropout) if i == 1 else []
        layers += [nn.Linear(fan_in, fan_out, bias=not batch_norm)]
        layers += [nn.BatchNorm1d(fan_out)] if batch_norm else []
        layers += [nn.Hardtanh(0.0, 1.0) if clamped else rectifier(negative_slope)]
        layers += [nn.Dropout(dropout)] if dropout else []
        units[f"fc{i}"] = nn.Sequential(*layers)
    return units


def _vectors(dropout: float) -> list[nn.Module]:
    return [nn.Flatten(), *([nn.Dropout(dropout)] if dropout else [])]


class MLP(Chain):
    """Fully connected ReLU network on flattened images.

    Args:
        image_shape: ``(C, H, W)`` of an input image.
        num_classes: width of the output.
        hidden: width of each hidden layer; one unit per entry. Without any, the one unit hands the pixels on.
        batch_norm: put a BatchNorm between the linear map and the ReLU.
        dropout: share of hidden activations dropped in training.
        negative_slope: of the ReLUs; not 0 makes them leaky.
        input_dropout: share of the pixels dropped in training.
        clamped: clamp hidden activations to 0 … 1 ("hard sigmoid") in place of the ReLU.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        hidden: Sequence[PositiveInt] = (256, 256, 256),
        batch_norm: bool = True,
        dropout: Share = 0.0,
        negative_slope: NonNegativeFloat = 0.0,
        input_dropout: Share = 0.0,
        clamped: bool = False,
    ) -> None:
        widths = [math.prod(image_shape), *hidden]
        units = hidden_units(widths, batch_norm, dropout, negative_slope, input_dropout, clamped)
        name = "-".join(["MLP", *map(str, hidden)])
        units = units or {"pixels": nn.Sequential(*_vectors(input_dropout))}
        super().__init__(units, nn.Linear(widths[-1], num_classes), image_shape, name)
        self._like = partial(
            hidden_units, batch_norm=batch_norm, dropout=dropout, negative_slope=negative_slope, clamped=clamped
        )

    @override
    def unit_like(self, index: int, feature_shape: tuple[int, ...], halve: bool) -> nn.Module:
        """A hidden layer as wide as that one."""
        (layer,) = (layer for layer in self.units[index].modules() if isinstance(layer, nn.Linear))
        widths = [math.prod(feature_shape), layer.out_features]
        return self._like(widths)["fc1"]
