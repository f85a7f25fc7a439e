"""Output losses: autograd against the table's δ, fixed points, vanishing and boosted signals, huge logits."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

import losses
from losses import (
    CrossEntropy,
    ErrExp,
    ErrPow3,
    ExpGB,
    LinearOutput,
    Pow3GB,
    SigmoidMSE,
    SoftmaxMSE,
    UnnormalizedExponential,
)
from losses.errors import UsageError


def softmax_mse_delta(z, t):
    p = z.softmax(1)
    g = p - t
    return p * (g - (p * g).sum(1, keepdim=True))


DELTAS = {
    CrossEntropy: lambda z, t: z.softmax(1) - t,
    SoftmaxMSE: softmax_mse_delta,
    SigmoidMSE: lambda z, t: (z.sigmoid() - t) * z.sigmoid() * (1 - z.sigmoid()),
    LinearOutput: lambda z, t: z - t,
    partial(LinearOutput, true_weight=5.0, target=3.0): lambda z, t: torch.where(t == 1, 5 * (z - 3), z),
    ExpGB: lambda z, t: 0.1 * z.exp() - t,
    partial(ExpGB, alpha=0.02, beta=-0.3): lambda z, t: 0.02 * z.exp() - 0.3 - t,
    Pow3GB: lambda z, t: 0.001 * z**3 - t,
    partial(Pow3GB, alpha=0.1, beta=0.2): lambda z, t: 0.1 * z**3 + 0.2 - t,
    ErrPow3: lambda z, t: (z - t) ** 3,
    ErrExp: lambda z, t: (z - t).sign() * ((z - t).abs().exp() - 1),
    UnnormalizedExponential: lambda z, t: z.exp() - t,
}
ALL = [*DELTAS]
PLAIN = [make for make in ALL if not isinstance(make, partial)]


def draw(size=7, classes=5, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (size,), generator=generator)


def one_hot(logits, labels):
    return F.one_hot(labels, logits.shape[1]).to(logits)


def test_every_output_loss_is_pinned():
    public = [one for name, one in vars(losses.outputs).items() if name[0].isupper() and isinstance(one, type)]
    assert set(PLAIN) == {one for one in public if issubclass(one, losses.OutputLoss)} - {losses.OutputLoss}


@pytest.mark.parametrize("make", ALL, ids=str)
def test_autograd_is_delta(make):
    logits, labels = draw()
    assert make()(logits, labels).shape == labels.shape
    with torch.no_grad():
        found = make().delta(logits, labels)
    torch.testing.assert_close(found, DELTAS[make](logits, one_hot(logits, labels)))


@pytest.mark.parametrize(("make", "boost"), [(ExpGB, torch.exp), (Pow3GB, lambda z: z**3)])
def test_boosted_loss_is_half_the_square_error_of_the_boosted_output(make, boost):
    logits, labels = draw()
    expected = 0.5 * (0.3 * boost(logits) + 0.1 - one_hot(logits, labels)).square().sum(1)
    torch.testing.assert_close(make(alpha=0.3, beta=0.1)(logits, labels), expected)


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


def test_unnormalized_exponential_is_the_poisson_likelihood():
    logits, labels = draw()
    poisson = F.poisson_nll_loss(logits, one_hot(logits, labels), reduction="none").sum(1)
    torch.testing.assert_close(UnnormalizedExponential()(logits, labels), poisson)


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


@pytest.mark.parametrize("make", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_float32_losses(make, dtype):
    logits, labels = draw()
    rounded = logits.to(dtype)
    if make is not CrossEntropy:  # torch's own rule
        assert make()(rounded, labels).dtype == torch.float32
    torch.testing.assert_close(make()(rounded, labels).double(), make()(rounded.double(), labels), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "make", [partial(ExpGB, alpha=0), partial(Pow3GB, alpha=-1), partial(LinearOutput, true_weight=0)]
)
def test_impossible_parameters_are_refused(make):
    with pytest.raises(UsageError, match="must be above 0"):
        make()
