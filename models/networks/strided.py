"""A small convolutional network without pooling and without BatchNorm."""

from collections.abc import Sequence

from torch import nn

from losses.errors import NetworkError
from models.networks.chain import Chain, rectifier
from ranges import PositiveInt

_GRID = 4  # positions per side that the classifier reads


class StridedCNN(Chain):
    """3×3 convolutions with ReLU, some of which halve the maps by their stride; a linear classifier on 4×4 positions.

    Args:
        image_shape: ``(C, H, W)`` of an input image.
        num_classes: width of the output.
        channels: output channels of each convolution; one unit per entry.
        strides: of each convolution.

    Raises:
        NetworkError: another number of strides than of convolutions, or none.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        channels: Sequence[PositiveInt] = (32, 64, 128),
        strides: Sequence[PositiveInt] = (2, 2, 1),
    ) -> None:
        if not channels or len(channels) != len(strides):
            raise NetworkError(
                f"{len(channels)} convolutions need a stride each, and there are {len(strides)}: give channels and "
                "strides of the same length."
            )
        read, *sides = image_shape
        units: dict[str, nn.Module] = {}
        for i, (written, stride) in enumerate(zip(channels, strides, strict=True), start=1):
            units[f"conv{i}"] = nn.Sequential(nn.Conv2d(read, written, 3, stride, padding=1), rectifier())
            read, sides = written, [-(-side // stride) for side in sides]
        name = "-".join(["StridedCNN", *map(str, channels)])
        rows, columns = (min(side, _GRID) for side in sides)
        linear = nn.Linear(read * rows * columns, num_classes)
        classifier = nn.Sequential(nn.AdaptiveAvgPool2d((rows, columns)), nn.Flatten(), linear)
        super().__init__(units, classifier, image_shape, name)
