"""A network made slimmable, layer by layer, and one of its widths made plain again."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from losses.errors import NetworkError
from models.networks.layers.slimmable import (
    Slimmable,
    SlimmableConv2d,
    SlimmableLinear,
    SwitchableBatchNorm,
    Width,
)
from models.networks.memory.profile import on_meta


def slim(module: nn.Module, width: Width, reads_all: bool = False, gives_all: bool = False) -> nn.Module:
    """Replace every layer by a slimmable one with its weights, in place.

    Args:
        module: convolutions, linear layers, BatchNorm, and layers without weights, in any order of residual units and
            Sequentials.
        width: at which it runs.
        reads_all: the first layer reads all inputs at each width: the image's channels.
        gives_all: the last layer, and a BatchNorm behind it, has all outputs at each width: the embedding.

    Returns:
        The module, or what replaces it.

    Raises:
        NetworkError: a layer with weights of another kind, or a width that would have no channels.
    """
    weighted = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    first, last = weighted[0] if reads_all else None, weighted[-1] if gives_all else None
    behind_last = False

    def swap(layer: nn.Module) -> nn.Module | None:
        nonlocal behind_last
        behind_last = behind_last or layer is last
        if type(layer) is nn.Conv2d:
            return SlimmableConv2d(layer, width, layer is last, layer is first)
        if type(layer) is nn.Linear:
            return SlimmableLinear(layer, width, layer is last, layer is first)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            return SwitchableBatchNorm(layer, width, behind_last)
        if any(True for _ in layer.parameters(recurse=False)):
            raise NetworkError(
                f"A {type(layer).__name__} cannot run at several widths: use a network of convolutions, linear layers "
                "and BatchNorm."
            )
        return None

    return _replaced(module, swap)


def narrowed(module: nn.Module, width: float) -> nn.Module:
    """A copy at one width, of plain layers: with the weights that this width uses, and its BatchNorm."""

    def swap(layer: nn.Module) -> nn.Module | None:
        return layer.plain(width) if isinstance(layer, Slimmable | SwitchableBatchNorm) else None

    return _replaced(copy.deepcopy(module), swap)


def _replaced(module: nn.Module, swap: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """The module with its layers swapped, in place; where nothing is to be swapped, those within it are."""
    new = swap(module)
    if new is None:
        for name, child in list(module.named_children()):
            setattr(module, name, _replaced(child, swap))
    return module if new is None else new


class EveryWidth(nn.Module):
    """A slimmable module at all of its widths, one after the other: what a training step computes.

    Args:
        module: what runs.
        width: at which it runs.
    """

    def __init__(self, module: nn.Module, width: Width) -> None:
        super().__init__()
        self.module, self.width = module, width

    @override
    def forward(self, x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Outputs from the narrowest to the whole network's, of one input, or of one for each width in this order."""
        widths, outputs = self.width.widths[::-1], []
        for share, own in zip(widths, x if isinstance(x, tuple) else [x] * len(widths), strict=True):
            with self.width.at(share):
                outputs.append(self.module(own))
        return tuple(outputs)


def require_all_widths(network: nn.Module, width: Width, image_shape: tuple[int, int, int], name: str) -> None:
    """Send two images of no values through a slimmable network at each width.

    Raises:
        NetworkError: its layers do not fit each other there, as where parts of it have channels of their own.
    """
    state, images = on_meta(network), torch.empty(2, *image_shape, device="meta")
    for share in width.widths:
        try:
            with width.at(share):
                functional_call(network, state, (images,))
        except (RuntimeError, ValueError) as fault:  # torch's words about shapes
            raise NetworkError(
                f"{name} does not run at width {share:g}, where its layers do not fit each other "
                f"({str(fault).partition(chr(10))[0]}). Choose widths that leave whole numbers of channels everywhere."
            ) from fault
