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
    class_codes,
    simplex_prototypes,
    with_constant,
)


def problem(count=60, features=7, targets=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    h = with_constant(torch.randn(count, features, generator=generator, dtype=torch.float64))
    return h, torch.randn(count, targets, generator=generator, dtype=torch.float64) + 0.5


def counted(h, z, batch=None):
    equations = NormalEquations.empty(h.shape[1], z.shape[1])
    for rows in torch.arange(len(h)).split(batch or len(h)):
        equations.add(h[rows], z[rows])
    return equations


RIDGES = [1e-6, 1e-2, 1.0, 100.0]


@pytest.mark.parametrize("ridge", RIDGES)
def test_solution_satisfies_the_normal_equations(ridge):
    h, z = problem()
    w = counted(h, z).solve(ridge)
    torch.testing.assert_close(h.T @ (h @ w - z) + ridge * w, torch.zeros_like(w), rtol=0, atol=1e-10)


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("shape", [(60, 7), (5, 20)], ids=["tall", "wide"])
def test_ridge_is_scikit_learns(ridge, shape):
    h, z = problem(*shape)
    theirs = Ridge(alpha=ridge, fit_intercept=False, solver="svd").fit(h.numpy(), z.numpy()).coef_.T
    np.testing.assert_allclose(counted(h, z).solve(ridge).numpy(), theirs, rtol=1e-6, atol=1e-8)


def test_ridge_is_a_direct_solve():
    h, z = problem()
    direct = np.linalg.solve(h.numpy().T @ h.numpy() + 0.3 * np.eye(8), h.numpy().T @ z.numpy())
    np.testing.assert_allclose(counted(h, z).solve(0.3).numpy(), direct, rtol=1e-12)


def test_gradient_descent_on_the_ridge_objective_arrives_there():
    h, z = problem()
    w = torch.zeros(8, 4, dtype=torch.float64)
    for _ in range(2000):
        w -= 0.01 * (h.T @ (h @ w - z) + 0.3 * w)
    torch.testing.assert_close(w, counted(h, z).solve(0.3), rtol=1e-8, atol=1e-10)


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def test_batches_in_any_order_sum_to_the_whole():
    h, z = problem(500)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    whole, streamed = counted(h, z), counted(h[order], z[order], batch=32)
    for name in ("gram", "cross", "squares"):
        assert relative(getattr(streamed, name), getattr(whole, name)) < 1e-10
    assert relative(streamed.solve(1e-6), whole.solve(1e-6)) < 1e-6


def test_two_processes_sums_add_up_to_the_whole():
    h, z = problem(500)
    whole, sums = counted(h, z), counted(h[:180], z[:180]) + counted(h[180:], z[180:])
    for name in ("gram", "cross", "squares"):
        assert relative(getattr(sums, name), getattr(whole, name)) < 1e-10
    assert relative(sums.solve(1e-6), whole.solve(1e-6)) < 1e-6


def test_figures_are_those_of_the_samples():
    h, z = problem()
    equations = counted(h, z, batch=13)
    w = equations.solve(0.3)
    condition = np.linalg.cond(h.numpy().T @ h.numpy() + 0.3 * np.eye(8))
    assert float(equations.condition(0.3)) == pytest.approx(condition, rel=1e-9)
    assert float(equations.effective_rank()) == pytest.approx(effective_rank(h), rel=1e-6)
    z, reached = z.numpy(), (h @ w).numpy()
    assert float(equations.r2(w, slice(1, 2))) == pytest.approx(r2_score(z[:, 1], reached[:, 1]), rel=1e-9)
    assert float(equations.r2(w)) == pytest.approx(r2_score(z, reached, multioutput="variance_weighted"), rel=1e-9)


def test_a_ridge_below_what_float64_resolves_is_an_error():
    h, z = problem(5, 20)
    with pytest.raises(torch.linalg.LinAlgError):
        counted(1e6 * h, z).solve(1e-300)


def test_class_codes_are_plus_and_minus_one():
    assert class_codes(torch.tensor([2, 0]), 3).tolist() == [[-1, -1, 1], [1, -1, -1]]


@pytest.mark.parametrize(("classes", "width", "kappa"), [(2, 50, 1.0), (10, 64, 0.5), (7, 7, 2.0)])
def test_prototypes_are_the_corners_of_a_simplex(classes, width, kappa):
    p = simplex_prototypes(classes, width, kappa)
    assert p.shape == (classes, width)
    expected = kappa**2 * width * classes / (classes - 1) * (torch.eye(classes) - 1 / classes)
    torch.testing.assert_close(p @ p.T, expected.double())
    assert torch.linalg.matrix_rank(p) == classes - 1
    assert float(p.square().mean()) == pytest.approx(kappa**2)
    apart = torch.pdist(p)
    torch.testing.assert_close(apart, apart[0].expand_as(apart))


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


def test_random_projections_have_the_scale_of_their_fan_in():
    targets = ForwardProjection(400, 500, 10)
    assert float(targets.q.std()) == pytest.approx(1 / 400**0.5, rel=0.02)
    assert float(targets.u.std()) == pytest.approx(1 / 10**0.5, rel=0.05)


def test_pure_prototypes_leave_fewer_directions_than_classes():
    h, labels = problem(features=4)[0], torch.arange(60) % 3
    assert torch.linalg.matrix_rank(Platonic(5, 8, 3, mu=0.0)(h, labels)) == 2


def test_targets_of_ones_own_must_say_what_they_are():
    with pytest.raises(NotImplementedError, match="HiddenTargets does not say"):
        HiddenTargets()(torch.zeros(1, 1), torch.zeros(1))
