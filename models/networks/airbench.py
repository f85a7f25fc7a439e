"""Airbench: convolutional networks that reach 94, 95 and 96 % on CIFAR-10 in seconds.

K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498, 2024, and its released code
(KellerJordan/cifar10-airbench). The recipe is made of parts that any network can use: the callbacks ``Whitening``,
``Lookahead`` and ``TestTimeViews``, the optimizers ``RoleSGD`` and ``Muon``, the schedule ``Triangle``, and
``Augment(flip="alternate")``.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import override

from losses.errors import NetworkError
from models.networks.chain import Chain
from ranges import PositiveFloat, PositiveInt, Share


class Airbench(Chain):
    """A whitening convolution, groups of convolutions that each halve the map, max-pooling, a scaled classifier.

    Units: ``whiten``, a 2×2 convolution without padding to 8·C channels (its weights are fixed: see the callback
    ``Whitening``) and GELU; of group i ``g<i>a``, convolution, 2×2 max-pooling, BatchNorm, GELU, and ``g<i>b``,
    convolution, BatchNorm, GELU. Convolutions have no bias; the first filters of each begin by handing their input on;
    BatchNorm has no scale. Sides of 32 pixels become 31, 15, 7, 3 and 1.

    The defaults are those of the 94 % network; the 95 % one has widths 128, 384, 384; the 96 % one 128, 384, 512,
    ``residual`` and ``bn_momentum`` 0.1.

    Args:
        image_shape: ``(C, H, W)`` of an input image.
        num_classes: width of the output.
        widths: channels of each group.
        residual: ``g<i>b`` is x + convolution, BatchNorm, GELU, convolution, BatchNorm of x, then GELU.
        bn_momentum: of the running statistics: what a new batch adds.
        scale: of the logits.

    Raises:
        NetworkError: no group, or the image is too small to be halved so often.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        widths: Sequence[PositiveInt] = (64, 256, 256),
        residual: bool = False,
        bn_momentum: Share = 0.4,
        scale: PositiveFloat = 1 / 9,
    ) -> None:
        channels, *sides = image_shape
        if not widths:
            raise NetworkError("Airbench has a group of convolutions at least: widths lists the channels of each.")
        if (min(sides) - 1) >> len(widths) < 1:
            raise NetworkError(
                f"Airbench halves the image, one pixel cut off, {len(widths)} times, too often for "
                f"{sides[0]}×{sides[1]} pixels. Use fewer widths, or larger images."
            )
        whiten = nn.Conv2d(channels, 8 * channels, kernel_size=2)
        whiten.weight.requires_grad_(False)
        units: dict[str, nn.Module] = {"whiten": nn.Sequential(whiten, nn.GELU())}
        channels *= 8
        for i, width in enumerate(widths, start=1):
            units[f"g{i}a"] = _convolution(channels, width, bn_momentum, pool=True)
            units[f"g{i}b"] = (_Residual if residual else _convolution)(width, width, bn_momentum)
            channels = width
        name = "Airbench-" + "-".join(map(str, widths)) + (" (residual)" if residual else "")
        super().__init__(units, _classifier(channels, num_classes, scale), image_shape, name)
        self._bn_momentum, self._scale = bn_momentum, scale

    @override
    def unit_like(self, index: int, feature_shape: tuple[int, ...], halve: bool) -> nn.Module:
        """A convolution, BatchNorm and GELU, with max-pooling if it halves; residual only where shapes allow it."""
        unit = self.units[index]
        if not index:
            return super().unit_like(index, feature_shape, halve)
        width = next(layer for layer in unit.modules() if isinstance(layer, nn.Conv2d)).out_channels
        if isinstance(unit, _Residual) and not halve and feature_shape[0] == width:
            return _Residual(width, width, self._bn_momentum)
        return _convolution(feature_shape[0], width, self._bn_momentum, pool=halve)

    @override
    def classifier_like(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
        """Max-pooling to one position, then a scaled linear layer."""
        return _classifier(feature_shape[0], num_classes, self._scale)


def _classifier(channels: int, num_classes: int, scale: float) -> nn.Sequential:
    pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
    return nn.Sequential(pool, nn.Linear(channels, num_classes, bias=False), Scale(scale))


def _layers(channels: int, width: int, bn_momentum: float, pool: bool = False) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight[:channels])
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=bn_momentum)
    norm.weight.requires_grad_(False)
    return [convolution, *([nn.MaxPool2d(2)] if pool else []), norm]


def _convolution(channels: int, width: int, bn_momentum: float, pool: bool = False) -> nn.Sequential:
    return nn.Sequential(*_layers(channels, width, bn_momentum, pool), nn.GELU())


class _Residual(nn.Module):
    """GELU of x + convolution, BatchNorm, GELU, convolution, BatchNorm of x."""

    def __init__(self, channels: int, width: int, bn_momentum: float) -> None:
        super().__init__()
        first, second = _layers(channels, width, bn_momentum), _layers(width, width, bn_momentum)
        self.branch = nn.Sequential(*first, nn.GELU(), *second)
        self.activation = nn.GELU()

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.branch(x))


class Scale(nn.Module):
    """Multiplies by a constant.

    Args:
        factor: the constant.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    @override
    def extra_repr(self) -> str:
        return f"{self.factor:g}"
