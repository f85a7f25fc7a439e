"""A product of factors as layers, one after the other."""

from functools import partial

import torch
from torch import nn


def explicit_stack(layer):
    """The same factors as layers one after the other; the last one has the bias."""
    weights = [layer.parametrizations.weight.original, *(factor.matrix for factor in layer.parametrizations.weight)]
    if isinstance(layer, nn.Conv2d):
        make = partial(nn.Conv2d, out_channels=layer.out_channels, groups=layer.groups)
        first = make(layer.in_channels, kernel_size=layer.kernel_size, stride=layer.stride, padding=layer.padding)
        square = partial(make, layer.out_channels, kernel_size=1)
    else:
        first = nn.Linear(layer.in_features, layer.out_features)
        square = partial(nn.Linear, layer.out_features, layer.out_features)
    stack = nn.Sequential(first, *(square() for _ in weights[1:])).double()
    with torch.no_grad():
        for part, weight in zip(stack, weights, strict=True):
            part.weight.copy_(weight.reshape(part.weight.shape))
            part.bias = None
    stack[-1].bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
    return stack
