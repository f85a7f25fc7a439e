"""The heads of all neuron groups of a block, computed together.

Every head reads the features of all groups, and sends gradient back into its own group only. The heads
differ in nothing else, so they are one wide head (GN-DGL method sheet, section 14).
"""

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from losses.errors import NetworkError
from models.networks.heads.classifiers import HeadCallable
from models.networks.layers.grouped import GroupLinear, SharingConv2d, SharingLinear, convolution_setting


class GroupHeads(nn.Sequential):
    """The heads of all G groups of a block, computed together: no loop over groups.

    With sharing, every head is of full size and reads all channels; without, head g reads slice g and
    all its widths but the output's are divided by G, those of hidden linear layers rounded down. Layers
    work on G heads at once: convolutions and BatchNorm on G·c channels, linear layers as one batched
    matrix product.

    Args:
        head: what a single head is, for example ``AuxHead``: a sequence of convolutions, BatchNorm,
            linear layers and layers without parameters.
        feature_shape: shape of one sample's features, ``(C, H, W)``.
        num_classes: width of a head's output.
        num_groups: G, a divisor of C.
        sharing: see above.

    Raises:
        NetworkError: a layer of the head cannot be stacked, or divided by G.
    """

    def __init__(
        self,
        head: HeadCallable,
        feature_shape: tuple[int, ...],
        num_classes: int,
        num_groups: int,
        sharing: bool = True,
    ) -> None:
        with torch.device("meta"):
            layers = list(head(feature_shape, num_classes))
        *_, output = (layer for layer in layers if isinstance(layer, nn.Linear))
        divisor = 1 if sharing else num_groups  # of all widths but the output's
        stacked: list[nn.Module] = []
        reads_features = True
        for layer in layers:
            if type(layer) is nn.Conv2d:
                stacked.append(_convolutions(layer, num_groups, divisor, sharing and reads_features))
                reads_features = False
            elif type(layer) is nn.Linear:
                kind = SharingLinear if sharing and reads_features else GroupLinear
                hidden = layer.out_features if layer is output else _rounded(layer.out_features, divisor)
                inputs = _rounded(layer.in_features, divisor)
                stacked.append(kind(num_groups, inputs, hidden, bias=layer.bias is not None))
                reads_features = False
            elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and not reads_features:
                part = _rounded if isinstance(layer, nn.BatchNorm1d) else _part
                names = "eps", "momentum", "affine", "track_running_stats"
                setting = {name: getattr(layer, name) for name in names}
                stacked.append(type(layer)(num_groups * part(layer.num_features, divisor), **setting))
            elif list(layer.parameters()):
                raise NetworkError(
                    f"A head with a {type(layer).__name__} cannot be computed for several groups at once. Use "
                    "AuxHead, MLPSRHead or CNNHead, or num_groups: 1."
                )
            else:
                stacked.append(layer)
        super().__init__(*stacked)
        self.num_groups = num_groups

    @override
    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, G, num_classes)`` of features ``(B, C, H, W)``."""
        return super().forward(features).unflatten(1, (self.num_groups, -1))


def _convolutions(layer: nn.Conv2d, groups: int, divisor: int, reads_features: bool) -> nn.Module:
    inputs, outputs = _part(layer.in_channels, divisor), _part(layer.out_channels, divisor)
    setting = convolution_setting(layer)
    conv: SharingConv2d | nn.Conv2d
    if reads_features:
        _part(inputs, groups)
        conv = SharingConv2d(inputs, groups * outputs, **setting, groups=groups)
    else:
        conv = nn.Conv2d(groups * inputs, groups * outputs, **setting, groups=groups)
    nn.init.normal_(conv.weight, std=(2 / (outputs * math.prod(layer.kernel_size))) ** 0.5)
    return conv


def _part(width: int, divisor: int) -> int:
    if width % divisor:
        raise NetworkError(
            f"{divisor} groups do not divide the head's width {width}. Choose num_groups among its divisors, or "
            "another width of the head."
        )
    return width // divisor


def _rounded(width: int, divisor: int) -> int:
    """Of vectors: the released code of GN-DGL asks for no divisor (128 units of 6 groups: 21 each)."""
    if width < divisor:
        raise NetworkError(
            f"A head's {width} units are too few for {divisor} groups. Choose fewer groups, or more units."
        )
    return width // divisor
