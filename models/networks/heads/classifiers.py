"""Heads: auxiliary networks that turn a block's features into logits for the block's own loss.

Every head is built as ``Head(feature_shape, num_classes, …)``, where ``feature_shape`` is the shape of one sample's
features, ``(C, H, W)`` after a convolution, ``(C,)`` after a linear layer, and ``num_classes`` the width of the output.
"""

import math
from collections.abc import Callable
from itertools import pairwise

from torch import nn

from losses.errors import NetworkError
from models.networks.chain import initialise_convolutions
from models.networks.layers.pooling import GlobalAveragePool
from ranges import NonNegativeInt, PositiveInt


class Head(nn.Sequential):
    """Base of all heads: features of one block → what its loss needs, here logits ``(B, num_classes)``."""


HeadCallable = Callable[[tuple[int, ...], int], Head]
"""(feature shape, number of classes) → head."""


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    ]


def _require_maps(feature_shape: tuple[int, ...], head: str) -> None:
    if len(feature_shape) != 3:
        raise NetworkError(
            f"{head} convolves feature maps (C, H, W), but this block hands on vectors {tuple(feature_shape)}. "
            "Use a head without convolutions: LinearHead, or AuxHead with convs: 0."
        )


class AuxHead(Head):
    """The ``<convs>c<fcs>f`` family: convolutions, global average pooling, linear layers.

    ``1c2f``, the default, is the head of InfoPro and GN-DGL: 3×3 convolution C → 2C with stride 2,
    BatchNorm, ReLU, average pooling, Linear 2C → hidden, ReLU, Linear → classes. ``0c1f`` is a
    linear classifier on pooled features. Further convolutions keep 2C channels at stride 1, as in the
    published code. (InfoPro's own code keeps stride and width of a ResNet-32's last maps: 64 → 64 at stride 1.)

    Args:
        convs: number of convolutions.
        fcs: number of linear layers, at least 1.
        hidden: width of the hidden linear layers: 128·w for a ResNet of width factor w.

    Raises:
        NetworkError: convolutions on features that are no maps, or no linear layer.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        num_classes: int,
        convs: NonNegativeInt = 1,
        fcs: PositiveInt = 2,
        hidden: PositiveInt = 128,
    ) -> None:
        if fcs < 1:
            raise NetworkError("A head ends in a linear layer: fcs must be at least 1.")
        if convs:
            _require_maps(feature_shape, f"The head {convs}c{fcs}f")
        channels = [feature_shape[0], *[2 * feature_shape[0]] * convs]
        layers: list[nn.Module] = []
        for i, pair in enumerate(pairwise(channels)):
            layers += _conv(*pair, 3, stride=1 if i else 2)
        layers += [GlobalAveragePool()] if len(feature_shape) == 3 else []
        widths = [channels[-1], *[hidden] * (fcs - 1)]
        for pair in pairwise(widths):
            layers += [nn.Linear(*pair), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(widths[-1], num_classes))
        initialise_convolutions(self)


class MLPSRHead(Head):
    """DGL's ``MLP-SR`` head (Belilovsky et al., ICML 2020): spatially reduced, then an MLP.

    Average pooling to a quarter of the side, three 1×1 convolutions C → C with BatchNorm and ReLU,
    pooling to 2×2, three hidden linear layers of 4C with BatchNorm and ReLU, linear output.

    Raises:
        NetworkError: the features are no maps.
    """

    def __init__(self, feature_shape: tuple[int, ...], num_classes: int) -> None:
        _require_maps(feature_shape, "MLPSRHead")
        channels, height, width = feature_shape
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d((max(height // 4, 1), max(width // 4, 1)))]
        for _ in range(3):
            layers += _conv(channels, channels, 1)
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        width = 4 * channels
        for _ in range(3):
            layers += [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(width, num_classes))
        initialise_convolutions(self)


class PooledMLPHead(Head):
    """The head of MAN++'s code on decoupled greedy learning (Su et al., 2026).

    Average pooling to 8×8, three 1×1 convolutions to 128 channels, average pooling, three hidden linear layers of 512,
    all with BatchNorm and ReLU, linear output.

    Raises:
        NetworkError: the features are no maps.
    """

    def __init__(self, feature_shape: tuple[int, ...], num_classes: int) -> None:
        _require_maps(feature_shape, "PooledMLPHead")
        channels, *sides = feature_shape
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(tuple(min(side, 8) for side in sides))]
        for pair in pairwise([channels, 128, 128, 128]):
            layers += _conv(*pair, 1)
        layers += [GlobalAveragePool()]
        for pair in pairwise([128, 512, 512, 512]):
            layers += [nn.Linear(*pair), nn.BatchNorm1d(512), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.Linear(512, num_classes))
        initialise_convolutions(self)


class CNNHead(Head):
    """DGL's ``CNN`` head (Belilovsky et al., ICML 2020).

    Two 3×3 convolutions C → C with BatchNorm and ReLU at full resolution, average pooling to 2×2,
    BatchNorm, linear output.

    Raises:
        NetworkError: the features are no maps.
    """

    def __init__(self, feature_shape: tuple[int, ...], num_classes: int) -> None:
        _require_maps(feature_shape, "CNNHead")
        channels = feature_shape[0]
        layers = [*_conv(channels, channels, 3), *_conv(channels, channels, 3)]
        layers += [nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(channels), nn.Flatten()]
        super().__init__(*layers, nn.Linear(4 * channels, num_classes))
        initialise_convolutions(self)


class LinearHead(Head):
    """Linear classifier on features averaged over a small grid of positions.

    Source of the default: E. Belilovsky, M. Eickenberg, E. Oyallon, "Greedy Layerwise Learning Can Scale to
    ImageNet", ICML 2019, k = 1: averaged to 2×2 positions (their code has a BatchNorm after the average, too).
    Vectors are classified as they are.

    Args:
        grid: rows and columns that maps are averaged to; a map with fewer is not enlarged.
    """

    def __init__(
        self, feature_shape: tuple[int, ...], num_classes: int, grid: tuple[PositiveInt, ...] = (2, 2)
    ) -> None:
        size = tuple(min(side, limit) for side, limit in zip(feature_shape[1:], grid, strict=False))
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(size)] if size != tuple(feature_shape[1:]) else []
        layers += [nn.Flatten()] if size else []
        super().__init__(*layers, nn.Linear(feature_shape[0] * math.prod(size), num_classes))


class ConvHead(Head):
    """Look-ahead head conv_k (Belilovsky et al., ICML 2019): k − 1 convolutions, then :class:`LinearHead`.

    The convolutions are 3×3, at full resolution, each with BatchNorm and ReLU.

    Args:
        layers: k, the layers of the head; 1 is ``LinearHead``, the paper goes up to 3.
        width: channels of the convolutions; as many as the features have by default.

    Raises:
        NetworkError: no layer, or convolutions on features that are no maps.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        num_classes: int,
        layers: PositiveInt = 2,
        width: PositiveInt | None = None,
    ) -> None:
        if layers < 1:
            raise NetworkError(f"A look-ahead head ends in a linear layer: layers must be at least 1, not {layers}.")
        if layers > 1:
            _require_maps(feature_shape, f"A look-ahead head of {layers} layers")
        widths = [feature_shape[0], *[width or feature_shape[0]] * (layers - 1)]
        convolutions = [layer for pair in pairwise(widths) for layer in _conv(*pair, 3)]
        super().__init__(*convolutions, *LinearHead((widths[-1], *feature_shape[1:]), num_classes))
        initialise_convolutions(self)
