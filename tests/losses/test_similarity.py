"""Similarity matching: the matrix and the loss against slow versions, and the cases that divide by zero."""

import math

import numpy as np
import pytest
import torch

from losses import channel_deviation, similarity_loss, similarity_matrix


def slow_matrix(x):
    """Entry by entry, with numpy."""
    x = x.detach().numpy()
    if x.ndim == 4:
        x = np.array([[channel.std(ddof=1) for channel in image] for image in x])  # Bessel, as the published code
    cosine = np.empty((len(x), len(x)))
    for i, a in enumerate(x):
        for j, b in enumerate(x):
            a_c, b_c = a - a.mean(), b - b.mean()
            cosine[i, j] = (a_c * b_c).sum() / math.sqrt((a_c**2).sum() * (b_c**2).sum())
    return torch.from_numpy(cosine)


def slow_loss(features, labels, num_classes):
    """In sums over pairs, differentiable; the targets by their formula."""
    x = features
    if x.dim() == 4:
        x = (x - x.mean((2, 3), keepdim=True)).square().mean((2, 3)).sqrt()
    x = x - x.mean(1, keepdim=True)
    total = 0
    for i in range(len(x)):
        for j in range(len(x)):
            target = 1.0 if labels[i] == labels[j] else -1 / (num_classes - 1)
            total = total + ((x[i] @ x[j]) / (x[i].norm() * x[j].norm()) - target) ** 2
    return total / len(x) ** 2


def draw(*shape):
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64), torch.randint(5, (shape[0],))


@pytest.mark.parametrize("shape", [(7, 12), (7, 6, 4, 3), (7, 6, 1, 2)])
def test_matrix_equals_a_loop(shape):
    x, _ = draw(*shape)
    torch.testing.assert_close(similarity_matrix(x), slow_matrix(x))


def test_matrix_is_that_of_cosines():
    x, _ = draw(9, 5)
    s = similarity_matrix(x)
    torch.testing.assert_close(s, s.T)
    torch.testing.assert_close(s.diag(), torch.ones(9, dtype=torch.float64))
    assert s.abs().max() <= 1 + 1e-12
    torch.testing.assert_close(similarity_matrix(3 * x + 2), s)  # centred rows, and no scale


@pytest.mark.parametrize("shape", [(5, 6, 1, 1), (5, 3, 4, 4)])
def test_small_maps_are_flattened(shape):
    x, _ = draw(*shape)
    assert torch.equal(channel_deviation(x), x.flatten(1))
    torch.testing.assert_close(similarity_matrix(x), slow_matrix(x.flatten(1)))


@pytest.mark.parametrize("num_classes", [2, 10])
def test_labels_are_alike_within_a_class_and_opposed_between_classes(num_classes):
    labels = torch.tensor([0, 1, 1, 0])
    s = similarity_matrix(torch.nn.functional.one_hot(labels, num_classes).double())
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    torch.testing.assert_close(s, torch.where(same, 1.0, -1 / (num_classes - 1)).double())


@pytest.mark.parametrize("shape", [(6, 8), (6, 5, 3, 4)])
def test_loss_and_gradient_equal_a_slow_version(shape):
    x, labels = draw(*shape)
    x.requires_grad_()
    ours, theirs = similarity_loss(x, labels, 5), slow_loss(x, labels, 5)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, x)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_loss_is_zero_when_features_are_the_labels():
    labels = torch.tensor([0, 2, 1, 2])
    assert similarity_loss(torch.nn.functional.one_hot(labels, 3).float(), labels, 3) < 1e-12


@pytest.mark.parametrize("x", [torch.zeros(4, 6), torch.ones(4, 6, 3, 3), torch.zeros(4, 6, 1, 1)])
def test_features_without_any_difference_give_no_gradient_and_no_nan(x):
    x = x.requires_grad_()
    loss = similarity_loss(x, torch.tensor([0, 0, 1, 2]), 3)
    loss.backward()
    assert loss.isfinite()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_one_image_has_no_pair():
    assert similarity_loss(torch.randn(1, 6), torch.tensor([2]), 5).item() == pytest.approx(0, abs=1e-12)
