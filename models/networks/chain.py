"""A network as a chain of units: the form in which every network here can be cut into blocks."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from typing_extensions import override

from losses.errors import NetworkError
from models.networks.layers.pooling import GlobalAveragePool


class Chain(nn.Module):
    """Named units applied one after the other, then a classifier.

    A unit is the smallest piece that a cut may fall between: a layer, or a residual block. Nothing
    else that trains, cuts or accounts for networks knows more of them than this class.

    Args:
        units: unit name → module, in the order of the forward pass. Names contain no dots.
        classifier: turns the last unit's features into logits ``(B, num_classes)``; it is the
            last block's own head, as in ordinary training.
        image_shape: ``(channels, height, width)`` of an input image.
        name: how tables and TensorBoard call this network.

    Attributes:
        published_cuts: K → names of the units after which the literature cuts this network into K blocks.
        published_memory_cuts: the same for the published cuts that balance activation memory.
    """

    published_cuts: Mapping[int, tuple[str, ...]] = {}
    published_memory_cuts: Mapping[int, tuple[str, ...]] = {}

    def __init__(
        self,
        units: Mapping[str, nn.Module],
        classifier: nn.Module,
        image_shape: tuple[int, int, int],
        name: str,
    ) -> None:
        super().__init__()
        self.units = nn.Sequential(OrderedDict(units))
        self.classifier = classifier
        channels, height, width = image_shape
        self.image_shape = channels, height, width
        self.name = name

    @property
    def unit_names(self) -> list[str]:
        """Names of the units, in the order of the forward pass."""
        return [name for name, _ in self.units.named_children()]

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, num_classes)`` of images ``(B, C, H, W)``."""
        return self.classifier(self.units(images))

    def unit_like(self, index: int, feature_shape: tuple[int, ...], halve: bool) -> nn.Module:
        """A new unit of the same kind and width as one of this chain, for other features; no weight is shared.

        Args:
            index: which unit, counted from 0.
            feature_shape: what it shall read, ``(C, H, W)`` or ``(C,)`` of one sample.
            halve: whether it halves the sides of maps.

        Raises:
            NetworkError: nobody has said how such units are made.
        """
        raise NetworkError(
            f"Heads made of units like those of {self.name} need to know how to make them: give its class a method "
            "unit_like (docs/networks.md), or choose another head, such as AuxHead."
        )

    def classifier_like(self, feature_shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
        """A new classifier of other features: what makes vectors of maps, then what makes logits of vectors."""
        pool = GlobalAveragePool() if len(feature_shape) == 3 else nn.Identity()
        return nn.Sequential(pool, nn.Linear(feature_shape[0], num_classes))


class FeatureShape(tuple[int, ...]):
    """Shape of one sample's features, ``(C, H, W)`` or ``(C,)``, that knows which unit of which chain they come from.

    Args:
        shape: the shape.
        chain: the chain.
        unit: number of the unit, counted from 0.
    """

    chain: Chain
    unit: int

    def __new__(cls, shape: Sequence[int], chain: Chain, unit: int) -> "FeatureShape":
        """A tuple with two attributes."""
        self = super().__new__(cls, shape)
        self.chain, self.unit = chain, unit
        return self

    def __reduce__(self) -> tuple[type[tuple[int, ...]], tuple[list[int]]]:
        """As a plain tuple it is copied and saved: a network shall not go with the shape of its features."""
        return tuple, ([*self],)


_Made = Callable[[tuple[int, int, int], int], Chain | nn.Sequential]
NetworkCallable = _Made | Callable[[tuple[int, int, int], int], Chain]
"""(image shape, number of classes) → network. The second is part of the first, for names that the first does not tell
apart: of ``MLP``, which torchvision has too, the one that is a chain."""


def initialise_convolutions(module: nn.Module) -> None:
    """Draw convolution weights from a normal distribution with std √(2 / (k·k·C_out)) (He et al., 2015).

    BatchNorm (1 and 0) and Linear keep PyTorch's defaults.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def rectifier(negative_slope: float = 0.0) -> nn.Module:
    """ReLU, or leaky ReLU if the slope below zero is not 0; in place."""
    return nn.LeakyReLU(negative_slope, inplace=True) if negative_slope else nn.ReLU(inplace=True)
