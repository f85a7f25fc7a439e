"""The diversity loss against the pair-by-pair reference, and by hand."""

import math

import pytest
import torch

from experiments.studies.published_loop import diversity as pair_by_pair
from losses.diversity import diversity


def draw(groups, classes=5, batch=7):
    logits = torch.randn(batch, groups, classes, dtype=torch.float64, requires_grad=True)
    return logits, torch.randint(classes, (batch,))


@pytest.mark.parametrize("groups", [2, 3, 8])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_equals_the_sum_over_pairs_with_its_gradient(groups, temperature):
    logits, labels = draw(groups)
    ours = diversity(logits, labels, temperature)
    theirs = pair_by_pair(list(logits.unbind(1)), labels, temperature)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits))


def test_cosine_of_two_known_distributions():
    # Beside the true class, T = 1: (1/4, 3/4) and (1/2, 1/2); their cosine is 2 / √5.
    p = torch.tensor([[[0.2, 0.2, 0.6], [0.5, 0.25, 0.25]]])
    value = diversity(p.log(), torch.tensor([0]), temperature=1.0)
    assert value.item() == pytest.approx(2 / math.sqrt(5), abs=1e-5)


def test_of_one_group_is_zero():
    logits, labels = draw(1)
    assert diversity(logits, labels).item() == 0
