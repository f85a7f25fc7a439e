"""Output losses: what the logits z of a classifying head are trained on.

A. Øland, "Efficient Deep Learning", PhD thesis, CMU-CS-24-147, 2024; A. Oland, A. Bansal, R. Dannenberg, B. Raj, "Be
Careful What You Backpropagate", arXiv 1707.04199, 2017: outputs that saturate impede learning, and softmax owes its
merit to the exponential in its error gradient, not to its normalization. Neither text was available: the formulas of
``ExpGB`` and ``Pow3GB`` are those of third-party descriptions, ``ErrPow3`` and ``ErrExp`` are our alternative reading.

With t the one-hot target, p = softmax(z), σ = sigmoid(z), e = z − t, the gradient δ = ∂L/∂z of a sample is exactly

    CrossEntropy             p − t
    SoftmaxMSE               p ∘ (g − pᵀg), g = p − t         squashed: vanishes where p is wrong and sure
    SigmoidMSE               (σ − t) ∘ σ(1 − σ)               squashed, likewise
    SigmoidCrossEntropy      (softmax(σ) − t) ∘ σ(1 − σ)      squashed, likewise
    LinearOutput             z − t
    ExpGB                    α·exp(z) + β − t
    Pow3GB                   α·z³ + β − t
    ErrPow3                  e³
    ErrExp                   sign(e)·(exp|e| − 1)
    UnnormalizedExponential  exp(z) − t

No exponential grows further beyond an argument of 8: there δ has α·e⁸ instead.

The prediction is argmax z throughout. Only under cross-entropy is softmax(z) trained to be a probability; of ``ExpGB``
with β = 0 and of ``UnnormalizedExponential`` it is the output, normalised. Of the others it is a score that keeps the
order of z, to be recalibrated before any likelihood or calibration error is computed from it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from losses.errors import UsageError
from ranges import PositiveFloat, Share

_CLAMP = 8.0


class OutputLoss(nn.Module):
    """Loss of every sample: a sum over the classes of ``terms``; whoever calls takes the mean over the batch."""

    @override
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Losses ``(B,)``, at least in float32, of logits ``(B, C)`` and labels int64 ``(B,)``."""
        z = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.terms(z, F.one_hot(labels, z.shape[1]).to(z)).sum(dim=1)

    def terms(self, z: Tensor, t: Tensor) -> Tensor:
        """What each class adds to the loss, ``(B, C)``, for one-hot targets t ``(B, C)``."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its terms are.")

    def delta(self, logits: Tensor, labels: Tensor) -> Tensor:
        """δ = ∂L/∂z ``(B, C)``: what the head sends back of each sample, before the mean over the batch."""
        with torch.enable_grad():
            z = logits.detach().requires_grad_()
            return torch.autograd.grad(self(z, labels).sum(), z)[0]


OutputLossCallable = Callable[[], OutputLoss]
"""A class of this module, its parameters set."""


class CrossEntropy(OutputLoss):
    """Softmax and cross-entropy: −log p of the true class.

    Args:
        smoothing: s, of the targets (1 − s) t + s / C (C. Szegedy et al., CVPR 2016).
    """

    def __init__(self, smoothing: Share = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    @override
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:  # torch's fused operator
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)


class SoftmaxMSE(OutputLoss):
    """Squashing control: ½‖softmax(z) − t‖²."""

    @override
    def terms(self, z: Tensor, t: Tensor) -> Tensor:
        return 0.5 * (z.softmax(dim=1) - t).square()


class SigmoidMSE(OutputLoss):
    """Squashing control: ½‖sigmoid(z) − t‖²."""

    @override
    def terms(self, z: Tensor, t: Tensor) -> Tensor:
        return 0.5 * (z.sigmoid() - t).square()


class SigmoidCrossEntropy(OutputLoss):
    """Squashing control: −log softmax(sigmoid(z)) of the true class, never below log(1 + (C − 1)/e).

    What D. Liu et al., "Unsupervised End-to-End Training with a Self-Defined Target" (2024), train with few labels.
    """

    @override
    def terms(self, z: Tensor, t: Tensor) -> Tensor:
        return -t * z.sigmoid().log_softmax(dim=1)


class LinearOutput(OutputLoss):
    """Square loss of the logits themselves: ½‖z − t‖².

    With many classes (from 42 on) Hui & Belkin (ICLR 2021) rescale: ½[k·(z_c − M)² + Σ_{j≠c} z_j²], c the true
    class. They divide by the number of classes where we halve: a factor on the learning rate.

    Args:
        true_weight: k.
        target: M, the true class's target.

    Raises:
        UsageError: one of them is not above 0.
    """

    def __init__(self, true_weight: PositiveFloat = 1.0, target: PositiveFloat = 1.0) -> None:
        super().__init__()
        if true_weight <= 0 or target <= 0:
            raise UsageError(f"true_weight and target must be above 0, not {true_weight} and {target}.")
        self.true_weight, self.target = true_weight, target

    @override
    def terms(self, z: Tensor, t: Tensor) -> Tensor:
        """½·k·(z − M)² of the true class, ½·z² of the others."""
        return 0.5 * (1 + (self.true_weight - 1) * t) * (z - self.target * t).square()


class _GradientBoosted(OutputLoss):
    """½‖y − t‖² of y = φ(z) = α·boost(z) + β, with the Jacobian of φ dropped on the way back: δ = y − t.

    The value is therefore no function that δ descends; Σ ∫φ + (β − t)·z is one.

    Raises:
        UsageError: α is not above 0.
    """

    def __init__(self, boost: Callable[[Tensor], Tensor], alpha: float, beta: float) -> None:
        super().__init__()
        if alpha <= 0:
            raise UsageError(f"alpha scales what boosts the gradient: it must be above 0, not {alpha}.")
        self.boost, self.alpha, self.beta = boost, alpha, beta

    @override
    def terms(self, z: Tensor, t: Tensor) -> Tensor:
        """½(y − t)², straight-through."""
        y = (self.alpha * self.boost(z) + self.beta).detach()
        # z + (y − z).detach() would round y away beside a huge z.
        return 0.5 * (y + (z - z.detach()) - t).square()


class ExpGB(_GradientBoosted):
    """Exponential gradient boosting: δ = α·exp(z) + β − t; at rest z = ln(1/α) in the true class, −∞ in others.

    Args:
        alpha: α; with many classes about 1/C (our reading: else the wrong classes alone give ‖δ‖ ≈ α√C at first).
        beta: β.
    """

    def __init__(self, alpha: PositiveFloat = 0.1, beta: float = 0.0) -> None:
        super().__init__(_clamped_exp, alpha, beta)


class Pow3GB(_GradientBoosted):
    """Cubic gradient boosting: δ = α·z³ + β − t; at rest z = (1/α)^⅓ in the true class, 0 in others.

    Args:
        alpha: α.
        beta: β.
    """

    def __init__(self, alpha: PositiveFloat = 0.001, beta: float = 0.0) -> None:
        super().__init__(_cube, alpha, beta)


class ErrPow3(OutputLoss):
    """The error itself cubed: Σ e⁴/4, δ = e³."""

    @override
    def terms(self, z: Tensor, t: Tensor) -> Tensor:
        return (z - t) ** 4 / 4


class ErrExp(OutputLoss):
    """The error itself exponentiated: Σ exp|e| − |e|, δ = sign(e)·(exp|e| − 1)."""

    @override
    def terms(self, z: Tensor, t: Tensor) -> Tensor:
        size = (z - t).abs()
        return _exp(size) - size


class UnnormalizedExponential(OutputLoss):
    """Cross-entropy without the normalizer: Σ exp(z) − t·z, δ = exp(z) − t, the test of "normalization hurts".

    It is torch's ``PoissonNLLLoss``, and has the δ of ``ExpGB(alpha=1)``.
    """

    @override
    def terms(self, z: Tensor, t: Tensor) -> Tensor:
        return _exp(z) - t * z


def _cube(z: Tensor) -> Tensor:
    return z**3


def _clamped_exp(z: Tensor) -> Tensor:
    return z.clamp(max=_CLAMP).exp()


def _exp(z: Tensor) -> Tensor:
    """exp(z), beyond 8 its tangent there: a plain clamp would leave δ = −t and push z further up."""
    return torch.where(z < _CLAMP, _clamped_exp(z), math.exp(_CLAMP) * (1 + z - _CLAMP))
