"""A network as it is asked for, or as anybody writes one: an ``nn.Sequential`` becomes a chain."""

import inspect
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import nn

from losses.errors import NetworkError
from models.networks.chain import Chain, NetworkCallable
from models.networks.layers.pooling import GlobalAveragePool

_TO_VECTORS = (nn.Flatten, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, GlobalAveragePool)
"""What makes vectors of maps belongs to the layer behind it: heads read maps."""


def build_chain(network: NetworkCallable, image_shape: tuple[int, int, int], num_classes: int) -> Chain:
    """The network for such images and classes; an ``nn.Sequential`` becomes a chain.

    A unit is a child with weights and what follows it without any (normalisation, activation, pooling, dropout). The
    last layer with weights, with the pooling and flattening before it, is the classifier.

    Args:
        network: (image shape, number of classes) → network.
        image_shape: ``(C, H, W)``.
        num_classes: number of classes.

    Raises:
        NetworkError: it is no chain nor a Sequential, takes other arguments, does not fit the images or the classes,
            has nothing but a classifier, or layers that share weights.
    """
    called = next(filter(inspect.isclass, getattr(network, "args", ())), network)  # a class from the command line
    name = getattr(called, "__name__", type(called).__name__)
    try:
        inspect.signature(called).bind(image_shape, num_classes, **getattr(network, "keywords", {}))
    except TypeError as fault:
        raise NetworkError(f"{name} has to take image_shape and num_classes before its options: {fault}.") from fault
    made = network(image_shape, num_classes)
    if isinstance(made, Chain):
        return made
    if not isinstance(made, nn.Sequential):
        raise NetworkError(
            f"{name} makes a {type(made).__name__}, whose parts do not say in which order they run: make a "
            "torch.nn.Sequential of them, or a models.networks.Chain (docs/networks.md)."
        )
    name = name if type(made) is nn.Sequential else type(made).__name__
    _require_fit(made, name, image_shape, num_classes)
    *units, (_, classifier) = _units(made)
    if not units:
        raise NetworkError(f"{name} is a classifier alone: there is no layer before it that could be a block.")
    if sum(len([*part.parameters()]) for _, part in [*units, ("", classifier)]) > len([*made.parameters()]):
        raise NetworkError(f"Layers of {name} share weights: blocks that learn apart cannot.")
    return Chain(OrderedDict(units), classifier, image_shape, name)


def _require_fit(network: nn.Sequential, name: str, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Send one image through; lazy layers get their shapes by it.

    Raises:
        NetworkError: a layer does not take what comes before it, or there are not as many outputs as classes.
    """
    network.eval()
    x = torch.zeros(1, *image_shape)
    with torch.no_grad():
        for key, child in network._modules.items():  # named_children() leaves out what is there twice
            try:
                y = child(x)
            except (RuntimeError, ValueError) as fault:  # torch's words about shapes
                raise NetworkError(
                    f"{key} of {name}, a {type(child).__name__}, does not take what comes before it, "
                    f"{tuple(x.shape[1:])}, for images of {image_shape}: {str(fault).partition(chr(10))[0]}"
                ) from fault
            x = y
    network.train()
    if x.shape != (1, num_classes):
        raise NetworkError(f"{name} gives {tuple(x.shape[1:])} for an image, and the data has {num_classes} classes.")


def _units(network: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each unit, the classifier the last."""
    groups: list[dict[str, nn.Module]] = [{}]
    for key, child in network._modules.items():
        opens = _has_weights(child) or isinstance(child, _TO_VECTORS)
        if opens and any(map(_has_weights, groups[-1].values())):
            groups.append({})
        groups[-1][key] = child
    for group in groups:
        named = next((key for key, child in group.items() if _has_weights(child)), "")
        unit = nn.Sequential(OrderedDict(group)) if len(group) > 1 else group[named]
        yield f"layer{named}" if named.isdigit() else named, unit


def _has_weights(module: nn.Module) -> bool:
    """Whether it has a weight matrix or kernel; scales and shifts of a normalisation are none."""
    return any(parameter.dim() > 1 for parameter in module.parameters())
