"""Similarity matching: the matrix and the loss against torch's correlations, and the cases that divide by zero."""

import pytest
import torch

from losses import channel_deviation, similarity_loss, similarity_matrix


def correlations(x):
    """Of the rows, or of the channels' deviations of maps, with Bessel's correction as in the published code."""
    return torch.corrcoef(x.std((2, 3)) if x.dim() == 4 else x)


def slow_loss(features, labels, num_classes):
    """With the targets by their formula."""
    targets = torch.where(labels == labels[:, None], 1.0, -1 / (num_classes - 1))
    return (correlations(features) - targets).square().mean()


def draw(*shape):
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64), torch.randint(5, (shape[0],))


@pytest.mark.parametrize("shape", [(7, 12), (7, 4, 4, 3), (7, 6, 1, 2)])
def test_matrix_loss_and_gradient_equal_the_slow_ones(shape):
    x, labels = draw(*shape)
    torch.testing.assert_close(similarity_matrix(x), correlations(x))
    x.requires_grad_()
    ours, theirs = similarity_loss(x, labels, 5), slow_loss(x, labels, 5)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, x)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize("shape", [(5, 6, 1, 1), (5, 3, 4, 4)])
def test_small_maps_are_flattened(shape):
    x, _ = draw(*shape)
    assert torch.equal(channel_deviation(x), x.flatten(1))
    torch.testing.assert_close(similarity_matrix(x), correlations(x.flatten(1)))


@pytest.mark.parametrize("x", [torch.zeros(4, 6), torch.ones(4, 6, 3, 3), torch.zeros(4, 6, 1, 1)])
def test_features_without_any_difference_give_no_gradient_and_no_nan(x):
    x = x.requires_grad_()
    loss = similarity_loss(x, torch.tensor([0, 0, 1, 2]), 3)
    loss.backward()
    assert loss.isfinite()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_one_image_has_no_pair():
    assert similarity_loss(torch.randn(1, 6), torch.tensor([2]), 5).item() == pytest.approx(0, abs=1e-12)
