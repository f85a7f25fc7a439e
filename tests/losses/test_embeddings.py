"""What features are like: separation, class means, alignment, redundancy, against slow references."""

import math

import pytest
import torch
from sklearn.neighbors import NearestCentroid

from losses import linear_cka, nearest_mean_top1, redundant_shares, separation_fuzziness


def clusters(count=120, classes=4, d=9, seed=0, spread=0.7):
    """Features ``(N, d)``, float64, around a mean per class; the classes are of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator).clamp(max=classes - 1)
    means = torch.randn(classes, d, generator=generator, dtype=torch.float64)
    return means[labels] + spread * torch.randn(count, d, generator=generator, dtype=torch.float64), labels


# -- separation fuzziness ------------------------------------------------------------------------------


def direct_fuzziness(features, labels):
    """The definition, with the pseudo-inverse of the full matrix."""
    means = torch.stack([features[labels == k].mean(0) for k in labels])  # (N, d): of each row's class
    within, between = (torch.cov(h.T, correction=0) for h in (features - means, means))
    return torch.trace(within @ torch.linalg.pinv(between, rtol=1e-10, hermitian=True)).item()


@pytest.mark.parametrize("d", [2, 9, 40])
def test_fuzziness_is_its_definition(d):
    features, labels = clusters(d=d)
    assert separation_fuzziness(features, labels) == pytest.approx(direct_fuzziness(features, labels), rel=1e-9)


def test_fuzziness_inverts_no_rounding():
    """Float32 class means of 1,000 dimensions span C − 1 directions and a great many tiny ones."""
    features, labels = clusters(count=300, d=1000)
    exact = separation_fuzziness(features, labels)
    assert separation_fuzziness(features.float() + 100, labels) == pytest.approx(exact, rel=1e-4)


def test_fuzziness_of_perfect_and_of_impossible_separation():
    features, labels = clusters(spread=0.0)
    assert separation_fuzziness(features, labels) == pytest.approx(0, abs=1e-20)
    assert math.isnan(separation_fuzziness(torch.ones(6, 3), torch.arange(6) % 2))
    assert math.isnan(separation_fuzziness(torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)))


def test_class_means_on_one_line_leave_the_other_directions_out():
    """Three means on a line span one direction, not two: the pseudo-inverse is of that rank."""
    features, labels = clusters(classes=3)
    means = torch.stack([features[labels == k].mean(0) for k in range(3)])
    line = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64) * torch.ones(9, dtype=torch.float64)
    features = features - means[labels] + line[labels]
    assert separation_fuzziness(features, labels) == pytest.approx(direct_fuzziness(features, labels), rel=1e-9)


# -- nearest class mean ----------------------------------------------------------------------------------


def test_nearest_mean_is_scikit_learns():
    known, known_labels = clusters()
    features, labels = clusters(seed=3)
    expected = NearestCentroid().fit(known, known_labels).score(features, labels)
    assert nearest_mean_top1(known, known_labels, features, labels) == expected
    assert nearest_mean_top1(known + 1e8, known_labels, features + 1e8, labels) == expected


def test_a_class_without_a_mean_is_never_found():
    known, known_labels = clusters(spread=0.0)
    some = known_labels != 2
    expected = float((known_labels != 2).double().mean())
    assert nearest_mean_top1(known[some], known_labels[some], known, known_labels) == pytest.approx(expected)


# -- alignment ---------------------------------------------------------------------------------------------


def slow_hsic(x, y):
    """Song et al., 2012, eq. 5, term by term."""
    n, of_x, of_y = len(x), x @ x.T, y @ y.T
    of_x.fill_diagonal_(0)
    of_y.fill_diagonal_(0)
    one = torch.ones(n, 1, dtype=x.dtype)
    cross = (one.T @ of_x @ one) * (one.T @ of_y @ one) / ((n - 1) * (n - 2))
    return (torch.trace(of_x @ of_y) + cross - 2 / (n - 2) * one.T @ of_x @ of_y @ one).item() / (n * (n - 3))


def test_alignment_is_its_definition():
    x, y = clusters(count=30)[0], clusters(count=30, d=5, seed=3)[0]
    y[:, :3] += x[:, :3]
    expected = slow_hsic(x, y) / math.sqrt(slow_hsic(x, x) * slow_hsic(y, y))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-9)
    assert linear_cka(y, x) == pytest.approx(expected, rel=1e-9)


def test_unrelated_features_are_not_aligned_however_wide():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 100, 3000, generator=generator)
    assert abs(linear_cka(x, y)) < 0.02  # the plain estimate is 0.97
    assert math.isnan(linear_cka(x, torch.ones(100, 2)))


# -- redundancy ------------------------------------------------------------------------------------------------


def test_redundant_samples_are_the_sure_and_right_ones():
    true = torch.tensor([0.5, 0.98, 0.9899, 0.99003, 0.991, 0.999, 0.001, 1.0])
    labels = torch.arange(8) % 2
    p = torch.stack([torch.where(labels == k, true, 1 - true) for k in (0, 1)], dim=1)
    assert redundant_shares(p, -true.log(), labels) == (4 / 8, 3 / 8)  # 0.99003: sure, but −ln p = 0.01002
    assert redundant_shares(p, torch.arange(8) / 100, labels) == (4 / 8, 1 / 8)
