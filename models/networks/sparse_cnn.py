"""A small network of sparse convolutions."""

from collections.abc import Sequence

from torch import nn

from losses.errors import NetworkError
from models.networks.chain import Chain, rectifier
from models.networks.layers.competition import ChannelCompetition
from models.networks.layers.pruned import PrunedConv2d
from ranges import PositiveInt, Share

_KERNEL, _STRIDE, _PADDING = 4, 2, 1  # of the pooling
_FIRST, _OTHERS = 5, 3  # kernel sizes


class SparseCNN(Chain):
    """Convolutions, 5×5 and then 3×3, some of whose weights are 0 for good, each with pooling over 4×4 by 2.

    D. Liu, J. Laydevant, A. Pontlevy, D. Querlioz, J. Grollier, "Unsupervised End-to-End Training with a Self-Defined
    Target" (2024); sizes as in their released code. First weights are torch's own.

    Args:
        image_shape: ``(C, H, W)`` of an input image.
        num_classes: width of the output.
        channels: of each convolution; one unit per entry.
        pruned: share of each convolution's weights that are 0.
        average: pool by means; by default by maxima.
        competition: channels compete (:class:`models.networks.ChannelCompetition`) in place of the ReLU.

    Raises:
        NetworkError: no convolution, or images too small to be pooled so often.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        channels: Sequence[PositiveInt] = (32, 128),
        pruned: Share = 0.5,
        average: bool = False,
        competition: bool = False,
    ) -> None:
        fan_in, rows, columns = image_shape
        if not channels or min(rows, columns) >> len(channels) == 0:
            raise NetworkError(
                f"{len(channels)} convolutions with pooling do not go on {rows}×{columns} pixels: each halves them, "
                "and there must be one at least."
            )
        pooling = nn.AvgPool2d if average else nn.MaxPool2d
        units: dict[str, nn.Module] = {}
        for i, fan_out in enumerate(channels, start=1):
            size = _FIRST if i == 1 else _OTHERS
            units[f"conv{i}"] = nn.Sequential(
                PrunedConv2d(fan_in, fan_out, size, padding=size // 2, pruned=pruned),
                ChannelCompetition() if competition else rectifier(),
                pooling(_KERNEL, _STRIDE, _PADDING),
            )
            fan_in, rows, columns = fan_out, rows // _STRIDE, columns // _STRIDE
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(fan_in * rows * columns, num_classes))
        super().__init__(units, classifier, image_shape, "-".join(["SparseCNN", *map(str, channels)]))
