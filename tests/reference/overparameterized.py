"""A product of factors as layers, one after the other."""

import torch
from torch import nn


def explicit_stack(layer):
    """The same factors as layers one after the other; the last one has the bias."""
    first = layer.parametrizations.weight.original
    factors = [factor.matrix for factor in layer.parametrizations.weight]
    stack = []
    for i, weight in enumerate([first, *factors]):
        bias = layer.bias is not None and i == len(factors)
        if isinstance(layer, nn.Conv2d):
            inputs = layer.in_channels if i == 0 else layer.out_channels
            setting = (layer.kernel_size, layer.stride, layer.padding) if i == 0 else (1,)
            part = nn.Conv2d(inputs, layer.out_channels, *setting, groups=layer.groups, bias=bias)
        else:
            part = nn.Linear(layer.in_features if i == 0 else layer.out_features, layer.out_features, bias=bias)
        part = part.double()
        with torch.no_grad():
            part.weight.copy_(weight.reshape(part.weight.shape))
            if bias:
                part.bias.copy_(layer.bias)
        stack.append(part)
    return nn.Sequential(*stack)
