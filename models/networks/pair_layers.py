"""Networks of self-contrastive Forward-Forward: layers that read two vectors, or two images, with the same weights.

X. Chen, D. Liu, J. Laydevant, J. Grollier, "Self-Contrastive Forward-Forward algorithm", Nature Communications 16, 5978
(2025), and their released code, but for the order of padding and standardisation.

    x  ──► standardised ──► W x  ──┐
                                   ├──► + 2 b = z ──► activation, pooling ──► the next layer
    x' ──► standardised ──► W x' ──┘
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn
from typing_extensions import override

from losses.self_contrastive import standardised
from models.networks.chain import Chain
from models.networks.layers.pooling import GlobalAveragePool
from ranges import PositiveInt

Pairing = Literal["first", "all"]
"""Which layers read pairs."""


class Pairs(NamedTuple):
    """What a layer reads in training: sample i of the first tensor beside sample i of the second, or alone."""

    first: Tensor
    second: Tensor | None = None


class Activity(NamedTuple):
    """What a layer makes of it."""

    features: Tensor
    preactivations: Tensor


class Triangle(nn.Module):
    """relu(x − mean of x over units), of ``(B, N, …)`` (A. Coates, A. Ng, H. Lee, AISTATS 2011)."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)).relu_()


ActivationName = Literal["triangle", "relu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"triangle": Triangle, "relu": nn.ReLU}


class PairLayer(nn.Module):
    """An affine map of the mean of two standardised samples, times two: W x + W x' + 2 b, in one product.

    Of a plain tensor it makes features, each sample paired with itself, as an ordinary layer.

    Args:
        affine: the map.
        activation: of what it hands on; the loss reads relu(z) in any case.
        pool: behind the activation.
        paired: whether it reads pairs; if not, it is W x + b of standardised samples.
    """

    def __init__(
        self,
        affine: nn.Module,
        activation: ActivationName = "triangle",
        pool: nn.Module | None = None,
        paired: bool = True,
    ) -> None:
        super().__init__()
        self.affine, self.activation, self.pool = affine, _ACTIVATIONS[activation](), pool or nn.Identity()
        self.paired = paired

    @override
    def forward(self, x: Tensor | Pairs) -> Tensor | Activity:
        """Features of a tensor; of pairs features and z, ``(B, N)`` or ``(B, N, H, W)``."""
        pairs = x if isinstance(x, Pairs) else Pairs(x)
        z = self._affine(pairs)
        features = self.pool(self.activation(z))
        return Activity(features, z) if isinstance(x, Pairs) else features

    def _affine(self, pairs: Pairs) -> Tensor:
        x = standardised(pairs.first)
        if not self.paired:
            return self.affine(x)
        return 2 * self.affine(x if pairs.second is None else (x + standardised(pairs.second)) / 2)


class PairMLP(Chain):
    """Fully connected layers, the first of which reads pairs.

    Args:
        image_shape: ``(C, H, W)`` of an input image.
        num_classes: width of the classifier, which only backpropagation uses.
        hidden: width of each layer.
        activation: of what each layer hands on.
        pairing: which layers read pairs; those that do not read what pairs have made of the one before them.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        hidden: Sequence[PositiveInt] = (2000, 2000),
        activation: ActivationName = "triangle",
        pairing: Pairing = "first",
    ) -> None:
        units: dict[str, nn.Module] = {}
        width = math.prod(image_shape)
        for i, out in enumerate(hidden, start=1):
            linear = nn.Linear(width, out)
            affine = linear if units else nn.Sequential(nn.Flatten(), linear)
            units[f"fc{i}"] = PairLayer(affine, activation, paired=pairing == "all" or not units)
            width = out
        name = "-".join(["PairMLP", *map(str, hidden)])
        super().__init__(units, nn.Linear(width, num_classes), image_shape, name)


@dataclass
class PairConv:
    """One convolution: as large a map as it reads, the border mirrored.

    Args:
        channels: how many it makes.
        kernel: its side.
        pool: ``max``, 4×4 by 2 with a border of 1, or ``average``, 2×2: both halve the map, rounded up.
        activation: of what it hands on.
    """

    channels: PositiveInt
    kernel: PositiveInt = 3
    pool: Literal["max", "average"] = "max"
    activation: ActivationName = "triangle"


PUBLISHED_LAYERS = [PairConv(96, kernel=5), PairConv(384), PairConv(1536, pool="average", activation="relu")]
"""For CIFAR-10."""


class PairCNN(Chain):
    """Convolutions that read pairs, weights drawn uniformly as by X. Glorot, Y. Bengio, AISTATS 2010.

    Args:
        image_shape: ``(C, H, W)`` of an input image.
        num_classes: width of the classifier, which only backpropagation uses.
        layers: the convolutions; by default those of the paper for CIFAR-10.
        pairing: which layers read pairs; those that do not read what pairs have made of the one before them.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        layers: list[PairConv] | None = None,
        pairing: Pairing = "all",
    ) -> None:
        units: dict[str, nn.Module] = {}
        channels = image_shape[0]
        layers = layers or PUBLISHED_LAYERS
        for i, layer in enumerate(layers, start=1):
            conv = nn.Conv2d(channels, layer.channels, layer.kernel, padding="same", padding_mode="reflect")
            nn.init.xavier_uniform_(conv.weight)
            paired = pairing == "all" or not units
            units[f"conv{i}"] = PairLayer(conv, layer.activation, _POOLS[layer.pool](), paired)
            channels = layer.channels
        classifier = nn.Sequential(GlobalAveragePool(), nn.Linear(channels, num_classes))
        name = "-".join(["PairCNN", *(str(layer.channels) for layer in layers)])
        super().__init__(units, classifier, image_shape, name)


_POOLS = {
    "max": lambda: nn.MaxPool2d(4, stride=2, padding=1, ceil_mode=True),
    "average": lambda: nn.AvgPool2d(2, ceil_mode=True),
}
