"""Output losses: autograd against the table's δ, values, vanishing and boosted signals, huge logits."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from losses import (
    CrossEntropy,
    ErrExp,
    ErrPow3,
    ExpGB,
    LinearOutput,
    Pow3GB,
    SigmoidCrossEntropy,
    SigmoidMSE,
    SoftmaxMSE,
    UnnormalizedExponential,
    outputs,
)
from losses.errors import UsageError


def softmax_mse(z, t):
    p = z.softmax(dim=1)
    g = p - t
    return p * (g - (p * g).sum(dim=1, keepdim=True))


def exp(z):
    return z.clamp(max=8).exp()


FORMULAS = {
    SoftmaxMSE(): softmax_mse,
    SigmoidMSE(): lambda z, t: (z.sigmoid() - t) * z.sigmoid() * (1 - z.sigmoid()),
    SigmoidCrossEntropy(): lambda z, t: (z.sigmoid().softmax(dim=1) - t) * z.sigmoid() * (1 - z.sigmoid()),
    CrossEntropy(): lambda z, t: z.softmax(dim=1) - t,
    CrossEntropy(smoothing=0.3): lambda z, t: z.softmax(dim=1) - 0.7 * t - 0.3 / z.shape[1],
    Pow3GB(): lambda z, t: 0.001 * z**3 - t,
    LinearOutput(): lambda z, t: z - t,
    ExpGB(): lambda z, t: 0.1 * exp(z) - t,
    ErrPow3(): lambda z, t: (z - t) ** 3,
    UnnormalizedExponential(): lambda z, t: exp(z) - t,
    ErrExp(): lambda z, t: (z - t).sign() * (exp((z - t).abs()) - 1),
}

DELTAS = FORMULAS | {
    LinearOutput(true_weight=5.0, target=3.0): lambda z, t: torch.where(t == 1, 5 * (z - 3), z),
    ExpGB(alpha=0.02, beta=-0.3): lambda z, t: 0.02 * z.exp() - 0.3 - t,
    Pow3GB(alpha=0.1, beta=0.2): lambda z, t: 0.1 * z**3 + 0.2 - t,
}

VALUES = {
    ExpGB(alpha=0.3, beta=0.1): lambda z, t: 0.5 * (0.3 * z.exp() + 0.1 - t).square(),
    Pow3GB(alpha=0.3, beta=0.1): lambda z, t: 0.5 * (0.3 * z**3 + 0.1 - t).square(),
    UnnormalizedExponential(): lambda z, t: F.poisson_nll_loss(z, t, reduction="none"),
}


def draw(size=7, classes=5, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (size,), generator=generator)


def one_hot(logits, labels):
    return F.one_hot(labels, logits.shape[1]).to(logits)


def test_every_output_loss_is_pinned():
    classes = [one for one in vars(outputs).values() if isinstance(one, type) and issubclass(one, outputs.OutputLoss)]
    assert {type(loss) for loss in FORMULAS} == {one for one in classes if not one.__subclasses__()}


@pytest.mark.parametrize("loss", DELTAS, ids=str)
def test_autograd_is_delta(loss):
    logits, labels = draw()
    assert loss(logits, labels).shape == labels.shape
    with torch.no_grad():
        found = loss.delta(logits, labels)
    torch.testing.assert_close(found, DELTAS[loss](logits, one_hot(logits, labels)))


@pytest.mark.parametrize("loss", VALUES, ids=str)
def test_value_is_half_the_square_error_of_the_boosted_output_or_the_poisson_likelihood(loss):
    logits, labels = draw()
    torch.testing.assert_close(loss(logits, labels), VALUES[loss](logits, one_hot(logits, labels)).sum(1))


@pytest.mark.parametrize(
    ("make", "margin", "norm", "tolerance"),
    [
        (SoftmaxMSE, 10, 1.28e-4, 0.01),
        (SoftmaxMSE, 20, 5.8e-9, 0.01),
        (SigmoidMSE, 20, 0.125, 1e-6),  # all from the true class, whose logit is 0: the sure and wrong one is silent
        (CrossEntropy, 20, math.sqrt(2), 1e-6),
        (LinearOutput, 10, math.sqrt(101), 1e-6),
        (LinearOutput, 20, math.sqrt(401), 1e-6),
    ],
)
def test_signal_of_a_sure_and_wrong_sample(make, margin, norm, tolerance):
    """Two classes, logits (M, 0), the second one true."""
    logits = torch.tensor([[margin, 0.0]], dtype=torch.float64)
    assert make().delta(logits, torch.tensor([1])).norm().item() == pytest.approx(norm, rel=tolerance, abs=0)


@pytest.mark.parametrize("make", [ExpGB, UnnormalizedExponential, ErrExp])
@pytest.mark.parametrize("size", [8.0, 9.0, 1e4, 1e10])
def test_exponentials_pull_huge_logits_back_at_a_bounded_pace(make, size):
    logits, labels = torch.tensor([[size, 0.0, -size], [0.0, size, -size]]), torch.tensor([0, 0])
    loss, delta = make()(logits, labels), make().delta(logits, labels)
    assert loss.isfinite().all()
    expected = (0.1 if make is ExpGB else 1) * math.exp(8)  # up to the 1 of the target and that of |e|
    if size > 8:  # of ErrExp |e| is 1 less in the true class
        assert delta[0, 0].item() == pytest.approx(expected, abs=2.01)
    assert delta[1, 1].item() == pytest.approx(expected, abs=2.01)


@pytest.mark.parametrize("loss", FORMULAS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_float32_losses(loss, dtype):
    logits, labels = draw()
    rounded = logits.to(dtype)
    if not isinstance(loss, CrossEntropy):  # torch's own rule
        assert loss(rounded, labels).dtype == torch.float32
    torch.testing.assert_close(loss(rounded, labels).double(), loss(rounded.double(), labels), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "make", [partial(ExpGB, alpha=0), partial(Pow3GB, alpha=-1), partial(LinearOutput, true_weight=0)]
)
def test_impossible_parameters_are_refused(make):
    with pytest.raises(UsageError, match="must be above 0"):
        make()
