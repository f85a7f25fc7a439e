"""A product of factors as layers, one after the other."""

from torch import nn
from torch.nn import functional as F


def explicit_stack(layer, x):
    """What the same factors give as layers one after the other; the bias comes last."""
    first, matrices = (
        layer.parametrizations.weight.original,
        [factor.matrix for factor in layer.parametrizations.weight],
    )
    if isinstance(layer, nn.Linear):
        x = F.linear(x, first)
        for matrix in matrices:
            x = F.linear(x, matrix[0])
    else:
        x = F.conv2d(x, first, None, layer.stride, layer.padding, groups=layer.groups)
        for matrix in matrices:
            x = F.conv2d(x, matrix.flatten(0, 1)[:, :, None, None], groups=layer.groups)
    bias = 0 if layer.bias is None else layer.bias.view(-1, *[1] * (x.dim() - 2))
    return x + bias
