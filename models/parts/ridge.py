"""The mathematics of closed-form fitting: ridge regression from streamed sums, and targets for hidden layers.

Everything is float64: with a ridge of 1e-6 the condition number is about 1e11, which float32 cannot hold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from losses.errors import NetworkError
from ranges import NonNegativeFloat, PositiveFloat


@dataclass
class NormalEquations:
    """The sums over samples that ridge regression of targets Z on features H needs, whatever the samples' order.

    Attributes:
        gram: HᵀH, ``(d, d)``; the last feature is the constant 1.
        cross: HᵀZ, ``(d, m)``.
        squares: Σ z² of every target, ``(m,)``.
    """

    gram: Tensor
    cross: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, features: int, targets: int, device: torch.device | str = "cpu") -> "NormalEquations":
        """Of no samples yet."""
        shapes = (features, features), (features, targets), (targets,)
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Count samples in: features ``(B, d)``, targets ``(B, m)``, float64."""
        self.gram.addmm_(features.T, features)
        self.cross.addmm_(features.T, targets)
        self.squares.add_(targets.square().sum(dim=0))

    def solve(self, ridge: float) -> Tensor:
        """W = (HᵀH + λI)⁻¹ HᵀZ, ``(d, m)``, by Cholesky; the constant is penalised like every feature.

        Raises:
            torch.linalg.LinAlgError: λ is too small for float64.
        """
        damped = self.gram + ridge * torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        return torch.cholesky_solve(self.cross, torch.linalg.cholesky(damped))

    def condition(self, ridge: float) -> Tensor:
        """Condition number of HᵀH + λI: largest over smallest eigenvalue."""
        values = torch.linalg.eigvalsh(self.gram).clamp(min=0) + ridge
        return values[-1] / values[0]

    def r2(self, weights: Tensor, columns: slice = slice(None)) -> Tensor:
        """Share of the variance of some targets, all together, that HW explains on the counted samples."""
        errors = self.squares - 2 * (weights * self.cross).sum(0) + (weights * (self.gram @ weights)).sum(0)
        variation = self.squares - self.cross[-1].square() / self.gram[-1, -1]
        return 1 - errors[columns].sum() / variation[columns].sum()

    def effective_rank(self) -> Tensor:
        """Effective rank of the centred features (:func:`losses.effective_rank`), from the Gram matrix."""
        sums, count = self.gram[-1], self.gram[-1, -1]
        values = torch.linalg.eigvalsh(self.gram - torch.outer(sums, sums) / count).clamp(min=0).sqrt()
        return torch.special.entr(values / values.sum()).sum().exp()


def with_constant(features: Tensor) -> Tensor:
    """[H, 1]: a column of ones appended to ``(B, d)``, whose weights are the biases."""
    return F.pad(features, (0, 1), value=1.0)


def class_codes(labels: Tensor, num_classes: int) -> Tensor:
    """Labels ``(B,)`` as float64 ``(B, C)``: 1 for the class, −1 for the others."""
    return 2 * F.one_hot(labels, num_classes).double() - 1


def simplex_prototypes(num_classes: int, width: int, kappa: float = 1.0) -> Tensor:
    """One target vector per class, as far from each other as can be: the corners of a simplex, rotated at random.

    P = κ √h √(C / (C − 1)) (I − 11ᵀ / C) U, ``(C, h)``, float64, with orthonormal rows U for C classes and a layer
    of h units, so PPᵀ = κ² h C / (C − 1) (I − 11ᵀ / C); κ is the root mean square of a prototype's entries.

    Raises:
        NetworkError: fewer units than classes, which leave no room for C orthonormal rows.
    """
    if width < num_classes:
        raise NetworkError(
            f"A layer of {width} units has no room for {num_classes} class prototypes: give it {num_classes} or more."
        )
    rotation = nn.init.orthogonal_(torch.empty(num_classes, width, dtype=torch.float64))
    centred = rotation - rotation.mean(dim=0)
    return kappa * (width * num_classes / (num_classes - 1)) ** 0.5 * centred


# -- what a hidden layer is to give -------------------------------------------------------------------


class HiddenTargets(nn.Module):
    """What a hidden layer is fitted to.

    Args:
        fan_in: features, constant included, that the layer reads.
        width: units of the layer.
        num_classes: C.
    """

    def __init__(self, fan_in: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Targets ``(B, width)`` of features ``(B, fan_in)`` and labels ``(B,)``, float64."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its targets are.")


class RandomFeatures(HiddenTargets):
    """No targets, ``(B, 0)``: the layer keeps its first, random weights, as in an extreme learning machine ("elm").

    The baseline that matters: random features explain nearly all of the success of closed-form fitting.
    """

    @override
    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return features[:, :0]


class ForwardProjection(HiddenTargets):
    """Z = g(HQ) + g(YU): random projections of what the layer reads and of the label.

    O'Shea & Rajendran, "Forward Projection", arXiv 2501.16476, re-derived from its description. Q and U are fixed
    and Gaussian with standard deviation 1/√fan_in.

    Args:
        g: squashes the projections.
    """

    def __init__(self, fan_in: int, width: int, num_classes: int, g: Literal["sign", "tanh"] = "sign") -> None:
        super().__init__(fan_in, width, num_classes)
        self.g = getattr(torch, g)
        self.q = nn.Buffer(_gaussian(fan_in, width))
        self.u = nn.Buffer(_gaussian(num_classes, width))

    @override
    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return self.g(features @ self.q) + self.g(class_codes(labels, self.num_classes) @ self.u)


class Platonic(HiddenTargets):
    """Z = P[y] + μ g(HQ): an ideal point per class, and a random projection of what the layer reads.

    Our reading of "platonic projections", a keyword of Øland's thesis, whose text was not available. P are the
    :func:`simplex_prototypes`; with μ = 0 they leave C − 1 directions of the features, and deep networks fail.

    Args:
        mu: μ, weight of the random projection.
        kappa: κ, scale of the prototypes.
        g: squashes the projection.
    """

    def __init__(
        self,
        fan_in: int,
        width: int,
        num_classes: int,
        mu: NonNegativeFloat = 1.0,
        kappa: PositiveFloat = 1.0,
        g: Literal["sign", "tanh"] = "sign",
    ) -> None:
        super().__init__(fan_in, width, num_classes)
        self.g, self.mu = getattr(torch, g), mu
        self.q = nn.Buffer(_gaussian(fan_in, width))
        self.prototypes = nn.Buffer(simplex_prototypes(num_classes, width, kappa))

    @override
    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return self.prototypes[labels] + self.mu * self.g(features @ self.q)


TargetsCallable = Callable[[int, int, int], HiddenTargets]
"""(fan-in with constant, width, number of classes) → targets of a hidden layer."""


def _gaussian(fan_in: int, width: int) -> Tensor:
    return torch.randn(fan_in, width, dtype=torch.float64) / fan_in**0.5
