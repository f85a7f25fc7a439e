"""Linear over-parameterization: a weight trained as a product of factors, and collapsed into one afterwards.

    W = W_d · … · W_2 · W_1

A k×k convolution becomes a k×k convolution followed by d − 1 convolutions of 1×1, a linear layer a chain of linear
layers, with nothing in between: the same functions, other learning dynamics, which favour weights of low rank.

M. Huh et al., "The Low-Rank Simplicity Bias in Deep Networks", TMLR 2023. The product is formed in weight space,
so that no activation more is computed or kept, whatever d.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from losses.errors import NetworkError

_DEEPEST = 100
"""Factors of a weight; the study goes up to 16."""


class Factor(nn.Module):
    """Multiplies a weight from the left by a square matrix over its output channels, of each group its own.

    The matrix is drawn from a normal distribution of variance 1 / width (that of He et al., 2015, without their
    factor 2 for a ReLU): the sum of ``width`` products keeps the variance of the weight's entries, so that a product
    of any depth starts with the standard deviation of the plain layer's weight.

    Args:
        weight: what is multiplied, ``(C_out, C_in / groups, …)``.
        groups: of the convolution, 1 for a linear layer.
    """

    def __init__(self, weight: Tensor, groups: int) -> None:
        super().__init__()
        width = weight.shape[0] // groups
        matrix = torch.randn(groups, width, width, dtype=weight.dtype, device=weight.device)
        self.matrix = nn.Parameter(matrix / width**0.5)

    @override
    def forward(self, weight: Tensor) -> Tensor:
        """The product, of the weight's shape."""
        rows = weight.unflatten(0, self.matrix.shape[:2]).flatten(2)  # (groups, C_out / groups, inputs of an output)
        return (self.matrix @ rows).reshape(weight.shape)


def overparameterize(module: nn.Module, depth: int) -> None:
    """Train the weight of every convolution and linear layer as a product of ``depth`` factors, in place.

    The layer's own weight, as it was drawn, is the first factor W_1; the others are square (see :class:`Factor`).
    Biases stay as they are. Initialise before and make the optimizer after: the factors are parameters.

    Args:
        module: whatever contains ``nn.Conv2d`` and ``nn.Linear`` layers.
        depth: d; 1 changes nothing.

    Raises:
        NetworkError: depth below 1, or too large to be meant.
    """
    if not 1 <= depth <= _DEEPEST:
        raise NetworkError(
            f"A weight is a product of 1 factor (plain) to {_DEEPEST}: choose a depth in between, not {depth}."
        )
    for layer in _layers(module):
        for _ in range(depth - 1):
            parametrize.register_parametrization(layer, "weight", Factor(layer.weight, getattr(layer, "groups", 1)))


def collapse(module: nn.Module) -> None:
    """Replace every product by its value, in place: the same function with the parameters of the plain network."""
    for layer in _layers(module):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")


def _layers(module: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
