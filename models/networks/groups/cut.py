"""The cut across the width: a block's channels fall apart into neuron groups.

    features ─┬─ group 1: own channels ──► head 1, loss 1 ─┐
    of the    ├─ group 2: own channels ──► head 2, loss 2  ├─ concatenated, detached ──► next block
    block     └─ group G: own channels ──► head G, loss G ─┘
    before

Group g owns the same slice of channels, from g·C/G on, in every layer of the block. Groups share values
and never gradients: the first convolution of a group and its head read the channels of all groups,
but gradient only flows back into the group's own.

Source: GN-DGL (Patel, Eickenberg, Belilovsky, "Local Learning with Neuron Groups", 2023).
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from losses.errors import NetworkError
from models.networks.chain import Chain
from models.networks.cut import block_shapes
from models.networks.layers.grouped import SharingConv2d
from models.networks.memory.profile import profile


def end_at_last_map(chain: Chain) -> None:
    """Move the fully connected units of a chain into its classifier: what is left can be grouped.

    Raises:
        NetworkError: nothing is left.
    """
    shapes = block_shapes(chain, chain.units)
    names = [name for name, shape in zip(chain.unit_names, shapes, strict=True) if len(shape) < 3]
    if len(names) == len(chain.units):
        raise NetworkError(
            f"{chain.name} has no feature maps whose channels could be split into neuron groups. Use num_groups: 1, "
            "or a CifarResNet or VGG."
        )
    if not names:
        return
    units = dict(chain.units.named_children())
    chain.classifier = nn.Sequential(*(units.pop(name) for name in names), chain.classifier)
    chain.units = nn.Sequential(OrderedDict(units))


def group_blocks(
    blocks: Sequence[nn.Sequential], image_shape: tuple[int, int, int], num_groups: int, sharing: bool = True
) -> None:
    """Split the convolutions of blocks into groups, in place; BatchNorm, ReLU and pooling work per channel anyway.

    Convolutions that read what a block is handed stay whole, so that every group sees all channels of
    the block before (values only: the block's input carries no gradient); so does the stem. Where BatchNorm
    stands between (pre-activation), it is divided among the groups: no group sends gradient into another's part. A
    convolution that becomes grouped keeps a part of its weights: drawn with the full number of output
    channels in He's rule, as in the published code.

    Args:
        blocks: blocks in the order of the forward pass.
        image_shape: ``(C, H, W)`` of an input image.
        num_groups: G.
        sharing: False also groups what reads the block's input (but not the image): G thin networks
            that never see each other.

    Raises:
        NetworkError: a width is not a multiple of G, or a layer has parameters that cannot be split by channels.
    """
    shape: tuple[int, ...] = image_shape
    for k, block in enumerate(blocks):
        leading, shape = _leading(block, shape)
        readers = {layer for layer in leading if isinstance(layer, nn.Conv2d)}
        whole = readers if sharing or k == 0 else set()
        for name, layer in list(block.named_modules()):
            _require_divisible(f"{name} of block {k + 1}", layer, num_groups, whole=layer in whole)
            if not isinstance(layer, nn.Conv2d):
                continue
            if layer not in whole:
                layer.groups *= num_groups
                layer.weight = nn.Parameter(layer.weight[:, : layer.in_channels // layer.groups].detach().clone())
            elif leading != readers:  # BatchNorm among them
                block.set_submodule(name, SharingConv2d.of(layer, num_groups))


def _leading(block: nn.Sequential, shape: tuple[int, ...]) -> tuple[set[nn.Module], tuple[int, ...]]:
    """The layers with parameters that come after no convolution of the block, and the shape of the block's output."""
    found: set[nn.Module] = set()

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        parameters = list(layer.parameters(recurse=False))
        if parameters and not inputs[0].requires_grad:
            found.add(layer)
        for parameter in parameters:  # what requires a gradient has been through a convolution
            parameter.requires_grad_(isinstance(layer, nn.Conv2d))

    with register_module_forward_pre_hook(look):
        ((cost, _),) = profile([block], shape)
    return found, cost.output_shape


def _require_divisible(name: str, layer: nn.Module, num_groups: int, whole: bool) -> None:
    if isinstance(layer, nn.Conv2d):
        widths = [layer.out_channels] if whole else [layer.in_channels // layer.groups, layer.out_channels]
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        widths = [layer.num_features]
    elif list(layer.parameters(recurse=False)):
        raise NetworkError(
            f"Neuron groups split convolutions and BatchNorm by channels, but {name} is a {type(layer).__name__}. "
            "Use num_groups: 1, or a CifarResNet or VGG."
        )
    else:
        return
    for width in widths:
        if width % num_groups:
            raise NetworkError(
                f"{num_groups} groups do not divide the {width} channels of {name}. Choose num_groups among the "
                f"divisors of {width}, or other widths (a VGG rounds them with width_multiple: {num_groups})."
            )
