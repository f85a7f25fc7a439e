"""The heads of all neuron groups of a block, computed together.

Every head reads the features of all groups, and sends gradient back into its own group only. The heads
differ in nothing else, so they are one wide head (GN-DGL method sheet, section 14).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from losses.errors import NetworkError
from models.networks.heads.classifiers import HeadCallable
from models.networks.layers.grouped import GroupLinear, SharingConv2d, SharingLinear


class GroupHeads(nn.Sequential):
    """The heads of all G groups of a block, computed together: no loop over groups.

    With sharing, every head is of full size and reads all channels; without, head g reads slice g and
    all its widths but the output's are divided by G. Layers work on G heads at once: convolutions and
    BatchNorm on G·c channels, linear layers as one batched matrix product.

    Args:
        head: what a single head is, for example ``AuxHead``: a sequence of convolutions, BatchNorm,
            linear layers and layers without parameters.
        feature_shape: shape of one sample's features, ``(C, H, W)``.
        num_classes: width of a head's output.
        num_groups: G, a divisor of C.
        sharing: see above.

    Raises:
        NetworkError: a layer of the head cannot be stacked, or a width is not a multiple of G.
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
        last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear))
        stack = _Stack(num_groups, sharing)
        super().__init__(*(stack(layer, is_output=i == last) for i, layer in enumerate(layers)))
        self.num_groups = num_groups

    @override
    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, G, num_classes)`` of features ``(B, C, H, W)``."""
        return super().forward(features).unflatten(1, (self.num_groups, -1))


class _Stack:
    """Turns the layers of one head into those of G heads, in their order."""

    def __init__(self, num_groups: int, sharing: bool) -> None:
        self.groups, self.sharing, self.reads_features = num_groups, sharing, True

    def __call__(self, layer: nn.Module, is_output: bool) -> nn.Module:
        builders: dict[type[nn.Module], Callable[[Any, int], nn.Module]] = {
            nn.Conv2d: self._conv,
            nn.Linear: self._linear,
            nn.BatchNorm2d: self._norm,
            nn.BatchNorm1d: self._norm,
        }
        build = builders.get(type(layer))
        if build is None or (self.reads_features and isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)):
            if list(layer.parameters()):
                raise NetworkError(
                    f"A head with a {type(layer).__name__} cannot be computed for several groups at once. Use "
                    "AuxHead, MLPSRHead or CNNHead, or num_groups: 1."
                )
            return layer
        stacked = build(layer, 1 if is_output else self._divisor)
        self.reads_features = False
        return stacked

    @property
    def _divisor(self) -> int:
        return 1 if self.sharing else self.groups

    def _width(self, width: int, divisor: int) -> int:
        if width % divisor:
            raise NetworkError(
                f"{divisor} groups do not divide the head's width {width}. Choose num_groups among its divisors, or "
                "another width of the head."
            )
        return width // divisor

    def _conv(self, layer: nn.Conv2d, divisor: int) -> nn.Module:
        outputs = self._width(layer.out_channels, divisor)
        setting: Any = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding")}
        conv: SharingConv2d | nn.Conv2d
        if self.sharing and self.reads_features:
            self._width(layer.in_channels, self.groups)
            conv = SharingConv2d(layer.in_channels, self.groups * outputs, **setting, groups=self.groups)
        else:
            inputs = self.groups * self._width(layer.in_channels, divisor)
            conv = nn.Conv2d(inputs, self.groups * outputs, **setting, groups=self.groups, bias=False)
        nn.init.normal_(conv.weight, std=(2 / (outputs * math.prod(layer.kernel_size))) ** 0.5)
        return conv

    def _norm(self, layer: nn.BatchNorm1d | nn.BatchNorm2d, divisor: int) -> nn.Module:
        return type(layer)(self.groups * self._width(layer.num_features, divisor))

    def _linear(self, layer: nn.Linear, divisor: int) -> nn.Module:
        kind = SharingLinear if self.sharing and self.reads_features else GroupLinear
        widths = self._width(layer.in_features, self._divisor), self._width(layer.out_features, divisor)
        return kind(self.groups, *widths, bias=layer.bias is not None)
