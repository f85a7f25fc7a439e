"""VGG networks: one unit per convolution (with the pooling that follows it) and per hidden layer."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

from torch import nn
from typing_extensions import override

from losses.errors import NetworkError
from models.networks.chain import Chain, initialise_convolutions, rectifier
from models.networks.layers.pooling import GlobalAveragePool
from models.networks.mlp import hidden_units
from ranges import NonNegativeFloat, PositiveFloat, PositiveInt, Share

Plan = Sequence[PositiveInt | Literal["M"]]


class VGG(Chain):
    """3×3 convolutions with BatchNorm and ReLU, 2×2 max-pooling, hidden linear layers, classifier.

    Args:
        image_shape: ``(C, H, W)`` of an input image.
        num_classes: width of the output.
        plan: output channels of each convolution; ``M`` pools the unit before it.
        hidden: widths of the fully connected hidden layers after the convolutions.
        width: factor on every channel and hidden width.
        width_multiple: round channels to the nearest multiple of this, halves up, so that as many neuron
            groups divide them: 128, 256, 512 become 126, 258, 510 for 6 groups. The rounding of the
            published VGG6a with 6 and 10 groups is not known.
        dropout: share of every unit's activations dropped in training.
        negative_slope: of the ReLUs; not 0 makes them leaky.
        batch_norm: put a BatchNorm between every convolution or linear map and its ReLU, instead of a bias.

    Raises:
        NetworkError: the plan does not start with a convolution, pools twice in a row, or pools more
            often than the image can be halved.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        plan: Plan = (32, 32, "M", 64, 64, "M", 128, 128),
        hidden: Sequence[PositiveInt] = (),
        width: PositiveFloat = 1.0,
        width_multiple: PositiveInt = 1,
        dropout: Share = 0.0,
        negative_slope: NonNegativeFloat = 0.0,
        batch_norm: bool = True,
    ) -> None:
        channels, rows, columns = image_shape
        name, halvings = type(self).__name__, list(plan).count("M")
        if not plan or plan[0] == "M":
            raise NetworkError(f"A VGG plan starts with a convolution's width, not with {plan}.")
        if any(one == other == "M" for one, other in pairwise(plan)):
            raise NetworkError(f"A VGG plan pools once after a convolution: {list(plan)} has two M in a row.")
        if 2**halvings > min(rows, columns):
            raise NetworkError(
                f"{name} halves the image {halvings} times, too often for {rows}×{columns} pixels. "
                "Use a plan with fewer M, or larger images."
            )
        units: dict[str, nn.Module] = {}
        convolutions = [(out, after == "M") for out, after in pairwise([*plan, 0]) if out != "M"]
        for i, (out, pool) in enumerate(convolutions, start=1):
            out = width_multiple * max(1, math.floor(out * width / width_multiple + 0.5))
            units[f"conv{i}"] = _convolution(channels, out, pool, batch_norm, dropout, negative_slope)
            channels = out
        features = channels * (rows >> halvings) * (columns >> halvings)
        widths = [features, *(max(1, round(out * width)) for out in hidden)]
        units |= hidden_units(widths, batch_norm, dropout=dropout, negative_slope=negative_slope)
        classifier = nn.Linear(widths[-1], num_classes)
        head = classifier if hidden else nn.Sequential(nn.Flatten(), classifier)
        super().__init__(units, head, image_shape, name if width == 1 else f"{name}×{width:g}")
        initialise_convolutions(self)
        self._convolution_like = partial(
            _convolution, batch_norm=batch_norm, dropout=dropout, negative_slope=negative_slope
        )
        self._hidden_like = partial(hidden_units, batch_norm=batch_norm, dropout=dropout, negative_slope=negative_slope)

    @override
    def unit_like(self, index: int, feature_shape: tuple[int, ...], halve: bool) -> nn.Module:
        """A convolution, with the pooling behind it if it halves; or a hidden layer, of averaged maps."""
        layer = next(layer for layer in self.units[index].modules() if isinstance(layer, nn.Conv2d | nn.Linear))
        channels = feature_shape[0]
        if isinstance(layer, nn.Conv2d):
            made = self._convolution_like(channels, layer.out_channels, halve)
        else:
            (hidden,) = self._hidden_like([channels, layer.out_features]).values()
            made = nn.Sequential(*([GlobalAveragePool()] if len(feature_shape) == 3 else []), hidden)
        initialise_convolutions(made)
        return made


def _convolution(
    channels: int, out: int, pool: bool, batch_norm: bool, dropout: float, negative_slope: float
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, out, kernel_size=3, padding=1, bias=not batch_norm)]
    layers += [nn.BatchNorm2d(out)] if batch_norm else []
    layers += [rectifier(negative_slope)]
    # The pooling belongs to the unit before it, so that a cut hands on a quarter of the bytes.
    layers += [nn.MaxPool2d(2)] if pool else []
    layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers)


class VGG6a(VGG):
    """VGG6a of Nøkland & Eidnes (ICML 2019): 4 convolutions, one hidden layer of 1024."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, **options: Any) -> None:
        plan: Plan = (128, "M", 256, "M", 512, "M", 512)
        super().__init__(image_shape, num_classes, plan, hidden=(1024,), **options)


class VGG8b(VGG):
    """VGG8b of Nøkland & Eidnes (ICML 2019): 6 convolutions, one hidden layer of 1024."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, **options: Any) -> None:
        plan: Plan = (128, 256, "M", 256, 512, "M", 512, "M", 512, "M")
        super().__init__(image_shape, num_classes, plan, hidden=(1024,), **options)


class VGG11b(VGG):
    """VGG11b of Nøkland & Eidnes (ICML 2019): 9 convolutions, one hidden layer of 1024."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, **options: Any) -> None:
        plan: Plan = (128, 128, 128, 256, "M", 256, 512, "M", 512, 512, "M", 512, "M")
        super().__init__(image_shape, num_classes, plan, hidden=(1024,), **options)


class VGG16(VGG):
    """The 13 convolutions of VGG-16 (Simonyan & Zisserman, 2015, column D) with one hidden layer of 512.

    The small hidden layer is the usual form for images of 32×32 pixels.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, **options: Any) -> None:
        plan: Plan = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
        super().__init__(image_shape, num_classes, plan, hidden=(512,), **options)
