"""Adversarial losses by hand and against binary cross-entropy."""

import math

import pytest
import torch
from torch.nn import functional as F

from losses.adversarial import discriminator_accuracy, discriminator_loss, generator_loss

REAL, FAKES = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([[-3.0], [0.0], [1.0]])


def test_they_are_cross_entropies_with_the_labels_real_and_fake():
    ones, zeros, entropy = torch.ones(3, 1), torch.zeros(3, 1), F.binary_cross_entropy_with_logits
    torch.testing.assert_close(generator_loss(FAKES), entropy(FAKES, ones))
    torch.testing.assert_close(discriminator_loss(REAL, FAKES), entropy(REAL, ones) + entropy(FAKES, zeros))


def test_by_hand():
    assert generator_loss(torch.zeros(4, 1)).item() == pytest.approx(math.log(2))
    assert discriminator_loss(torch.zeros(4, 1), torch.zeros(2, 1)).item() == pytest.approx(2 * math.log(2))
    sigmoid = 1 / (1 + math.exp(-0.7))
    assert generator_loss(torch.tensor([[0.7]])).item() == pytest.approx(-math.log(sigmoid))


def test_the_generator_learns_most_from_fakes_that_are_told():
    fakes = torch.tensor([[-5.0], [5.0]], requires_grad=True)
    generator_loss(fakes).backward()
    told, taken_for_real = fakes.grad.flatten().tolist()
    assert told == pytest.approx(-0.5, abs=0.01)
    assert taken_for_real == pytest.approx(0, abs=0.01)


def test_large_logits_do_not_overflow():
    far = torch.tensor([[1e4], [-1e4]])
    assert generator_loss(far).isfinite()
    assert discriminator_loss(far, far).isfinite()


def test_accuracy_counts_both_kinds_the_same():
    assert discriminator_accuracy(REAL, FAKES).item() == pytest.approx(2 / 3)
    assert discriminator_accuracy(torch.ones(1, 1), torch.ones(9, 1)).item() == 0.5
    assert discriminator_accuracy(torch.zeros(2, 1), torch.zeros(2, 1)).item() == 0.5  # 0 is a fake
