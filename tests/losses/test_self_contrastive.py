"""Goodness of pairs and its loss, by hand."""

import math

import pytest
import torch
from reference.self_contrastive import each_standardised

from losses.self_contrastive import neighbour, self_contrastive_loss, separated, standardised, unit_goodness


@pytest.mark.parametrize("shape", [(4, 7), (3, 2, 4, 5)])
def test_each_sample_is_standardised_over_all_its_numbers(shape):
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 2
    torch.testing.assert_close(standardised(x), each_standardised(x))


def test_a_constant_sample_becomes_zero():
    assert not standardised(torch.full((2, 5), 0.3)).abs().max() > 1e-3


def test_goodness_is_the_mean_square_of_what_is_above_zero():
    assert unit_goodness(torch.tensor([[1.0, -5.0, 3.0, 0.0]])).tolist() == [2.5]
    maps = torch.tensor([[[[1.0, -1.0]], [[3.0, 2.0]]]])  # one image, 2 units at 1 × 2 places
    assert unit_goodness(maps).tolist() == [[[5.0, 2.0]]]


def softplus(x):
    return math.log(1 + math.exp(x))


def test_the_loss_by_hand():
    good, bad = torch.tensor([1.0, 4.0]), torch.tensor([0.5, 7.0])
    expected = (softplus(2) + softplus(-1)) / 2 + (softplus(-5.5) + softplus(1)) / 2
    assert self_contrastive_loss(good, bad, 3.0, 6.0).item() == pytest.approx(expected)
    assert self_contrastive_loss(good, bad, 3.0, 6.0, 0.1).item() == pytest.approx(expected + 0.1 * 2.5)


def test_the_loss_of_maps_takes_each_place_and_penalises_an_image_s_norm():
    good = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
    plain = self_contrastive_loss(good.flatten(), good.flatten(), 1.0, 2.0)
    penalised = self_contrastive_loss(good, good, 1.0, 2.0, 0.5)
    assert (penalised - plain).item() == pytest.approx(0.5 * (5 + 1) / 2)


def test_large_goodness_is_no_infinity():
    loss = self_contrastive_loss(torch.zeros(1), torch.tensor([1e4]), 0.0, 1.0)
    assert loss.item() == pytest.approx(1e4 - 1 + math.log(2))


def test_a_neighbour_is_the_sample_so_many_places_on():
    x = torch.arange(5)
    assert neighbour(x, 1).tolist() == [1, 2, 3, 4, 0]
    assert neighbour(x, 3).tolist() == [3, 4, 0, 1, 2]


def test_the_share_on_the_right_side():
    good, bad = torch.tensor([5.0, 4.0, 3.0, 9.0]), torch.tensor([1.0, 6.0, 6.5, 7.0])
    assert separated(good, bad, 4.0, 6.0).item() == pytest.approx((2 / 4 + 1 / 4) / 2)
