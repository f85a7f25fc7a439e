"""Accuracy and the ensemble of the blocks' predictions."""

import pytest
import torch

from losses import ensemble, probabilities, top1


def test_top1_is_the_share_of_rows_whose_largest_entry_is_the_label():
    logits = torch.tensor([[0.1, 0.7, 0.2], [5.0, -1.0, 4.9], [-3.0, -2.0, -1.0], [0.0, 1.0, 0.0]])
    for labels, expected in (([1, 0, 2, 1], 1), ([1, 2, 2, 0], 0.5), ([0, 1, 0, 2], 0)):
        assert torch.equal(top1(logits, torch.tensor(labels)), torch.tensor(float(expected)))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_ensemble_is_a_mean_of_probabilities_in_which_each_block_counts_twice_the_one_before_it(count):
    torch.manual_seed(count)
    logits = [torch.randn(6, 5, dtype=torch.float64) * 3 for _ in range(count - 1)]
    logits.append(torch.randn(6, 3, 5, dtype=torch.float64))  # of three groups
    expected = 2 ** (count - 1) * logits[-1].softmax(2).mean(1)
    for k, z in enumerate(logits[:-1]):
        expected += 2**k * z.exp() / z.exp().sum(1, keepdim=True)
    torch.testing.assert_close(ensemble(logits), expected / (2**count - 1))


def test_groups_vote_with_their_probabilities():
    """One group that is very sure of class 0 does not outvote two that are fairly sure of class 1."""
    logits = torch.tensor([[[20.0, 0, 0], [0, 3, 0], [0, 3, 0]]])
    assert logits.mean(1).argmax() == 0
    p = probabilities(logits)
    assert p.argmax() == 1
    torch.testing.assert_close(p, torch.stack([z.softmax(0) for z in logits[0]]).mean(0, keepdim=True))
