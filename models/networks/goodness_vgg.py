"""A VGG whose units read no goodness: what they read is standardised, the channels of every class apart."""

from itertools import pairwise
from typing import Any

from torch import nn

from models.networks.layers.class_sets import ClassSetNorm
from models.networks.vgg import VGG, Plan


class GoodnessVGG(VGG):
    """Convolutions and ReLUs without BatchNorm, for blocks that learn by :class:`ClassGoodness`.

    Before its convolution every unit but the first takes the mean off each class's set of channels and divides by the
    set's standard deviation, over all positions of one image; so the goodnesses, the sets' means, are gone, and a unit
    reads the same whatever the scale of those before it. The first unit standardises the image.

    Source: DeeperForward (L. Sun et al., ICLR 2025), which normalises what a layer hands on; here that is where the
    next one begins, behind the pooling. It pools by averages and has no biases.

    Args:
        image_shape: ``(C, H, W)`` of an input image.
        num_classes: number of classes; must divide the channels of every convolution.
        plan: as of :class:`VGG`.
        options: width, dropout and the other arguments of :class:`VGG`.

    Raises:
        NetworkError: the classes do not divide the channels; what :class:`VGG` refuses.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        plan: Plan = (40, "M", 80, "M", 160, 160),
        **options: Any,
    ) -> None:
        super().__init__(image_shape, num_classes, plan, batch_norm=False, **options)
        units = [unit for unit in self.units if isinstance(unit, nn.Sequential)]
        units[0].insert(0, ClassSetNorm(image_shape[0], 1))
        for before, unit in pairwise(units):
            unit.insert(0, ClassSetNorm(_width(before), num_classes))


def _width(unit: nn.Module) -> int:
    """Channels or units that a unit hands on."""
    return next(len(layer.weight) for layer in unit.children() if isinstance(layer, nn.Conv2d | nn.Linear))
