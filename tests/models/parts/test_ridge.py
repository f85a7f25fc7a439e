"""Ridge regression from streamed sums, class prototypes, targets of hidden layers."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from losses import effective_rank
from losses.errors import NetworkError
from models.parts.ridge import (
    ForwardProjection,
    HiddenTargets,
    NormalEquations,
    Platonic,
    RandomFeatures,
    simplex_prototypes,
    with_constant,
)


def problem(count=60, features=7, targets=4):
    generator = torch.Generator().manual_seed(0)
    h = with_constant(torch.randn(count, features, generator=generator, dtype=torch.float64))
    return h, torch.randn(count, targets, generator=generator, dtype=torch.float64) + 0.5


def counted(h, z):
    equations = NormalEquations.empty(h.shape[1], z.shape[1])
    for rows in torch.arange(len(h)).split(13):
        equations.add(h[rows], z[rows])
    return equations


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0, 100.0])
@pytest.mark.parametrize("shape", [(60, 7), (5, 20)], ids=["tall", "wide"])
def test_ridge_is_scikit_learns(ridge, shape):
    h, z = problem(*shape)
    theirs = Ridge(alpha=ridge, fit_intercept=False, solver="svd").fit(h.numpy(), z.numpy()).coef_.T
    np.testing.assert_allclose(counted(h, z).solve(ridge).numpy(), theirs, rtol=1e-6, atol=1e-8)


def test_figures_are_those_of_the_samples():
    h, z = problem()
    equations = counted(h, z)
    w = equations.solve(0.3)
    condition = np.linalg.cond(h.numpy().T @ h.numpy() + 0.3 * np.eye(8))
    assert float(equations.condition(0.3)) == pytest.approx(condition, rel=1e-9)
    assert float(equations.effective_rank()) == pytest.approx(effective_rank(h), rel=1e-6)
    z, reached = z.numpy(), (h @ w).numpy()
    assert float(equations.r2(w, slice(1, 2))) == pytest.approx(r2_score(z[:, 1], reached[:, 1]), rel=1e-9)
    assert float(equations.r2(w)) == pytest.approx(r2_score(z, reached, multioutput="variance_weighted"), rel=1e-9)


@pytest.mark.parametrize(("classes", "width", "kappa"), [(2, 50, 1.0), (10, 64, 0.5), (7, 7, 2.0)])
def test_prototypes_are_the_corners_of_a_simplex(classes, width, kappa):
    p = simplex_prototypes(classes, width, kappa)
    assert p.shape == (classes, width)
    expected = kappa**2 * width * classes / (classes - 1) * (torch.eye(classes) - 1 / classes)
    torch.testing.assert_close(p @ p.T, expected.double())


def test_a_layer_too_narrow_for_its_prototypes_is_refused():
    with pytest.raises(NetworkError, match=r"9 units has no room for 10 class prototypes: give it 10 or more"):
        simplex_prototypes(10, 9)


def test_targets_follow_their_formulas():
    torch.manual_seed(0)
    h, labels = problem(features=4)[0], torch.arange(60) % 3
    codes = 2 * torch.eye(3, dtype=torch.float64)[labels] - 1
    assert RandomFeatures(5, 8, 3)(h, labels).shape == (60, 0)
    for g, squash in (("sign", torch.sign), ("tanh", torch.tanh)):
        forward = ForwardProjection(5, 8, 3, g=g)
        torch.testing.assert_close(forward(h, labels), squash(h @ forward.q) + squash(codes @ forward.u))
        platonic = Platonic(5, 8, 3, mu=0.5, kappa=2.0, g=g)
        torch.testing.assert_close(platonic(h, labels), platonic.prototypes[labels] + 0.5 * squash(h @ platonic.q))
        assert float(platonic.prototypes.square().mean()) == pytest.approx(2.0**2)


def test_random_projections_have_the_scale_of_their_fan_in():
    targets = ForwardProjection(400, 500, 10)
    assert float(targets.q.std()) == pytest.approx(1 / 400**0.5, rel=0.02)
    assert float(targets.u.std()) == pytest.approx(1 / 10**0.5, rel=0.05)


def test_targets_of_ones_own_must_say_what_they_are():
    with pytest.raises(NotImplementedError, match="HiddenTargets does not say"):
        HiddenTargets(1, 1, 1)(torch.zeros(1, 1), torch.zeros(1))
