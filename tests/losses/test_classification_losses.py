"""Accuracy and the ensemble of the blocks' predictions."""

import itertools

import pytest
import torch
from reference.ensemble import slow_ensemble

from losses import ensemble, ensemble_weights, top1


def test_top1_is_the_share_of_rows_whose_largest_entry_is_the_label():
    logits = torch.tensor([[0.1, 0.7, 0.2], [5.0, -1.0, 4.9], [-3.0, -2.0, -1.0], [0.0, 1.0, 0.0]])
    assert top1(logits, torch.tensor([1, 0, 2, 1])).item() == 1
    assert top1(logits, torch.tensor([1, 2, 2, 0])).item() == 0.5
    assert top1(logits, torch.tensor([0, 1, 0, 2])).item() == 0


def test_top1_is_a_scalar_and_equals_a_loop():
    torch.manual_seed(0)
    logits, labels = torch.randn(57, 10), torch.randint(10, (57,))
    hits = sum(
        max(range(10), key=row.__getitem__) == y for row, y in zip(logits.tolist(), labels.tolist(), strict=True)
    )
    accuracy = top1(logits, labels)
    assert accuracy.shape == ()
    assert accuracy.item() == pytest.approx(hits / 57)


def test_ensemble_weights_of_few_blocks():
    assert ensemble_weights(1) == [1]
    assert ensemble_weights(2) == pytest.approx([1 / 3, 2 / 3])
    assert ensemble_weights(3) == pytest.approx([1 / 7, 2 / 7, 4 / 7])


@pytest.mark.parametrize("count", [1, 2, 5, 16, 55])
def test_ensemble_weights_double_and_add_up_to_one(count):
    weights = ensemble_weights(count)
    assert len(weights) == count
    assert sum(weights) == pytest.approx(1)
    assert [b / a for a, b in itertools.pairwise(weights)] == pytest.approx([2] * (count - 1))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_ensemble_equals_a_slow_loop(count):
    torch.manual_seed(count)
    logits = [torch.randn(6, 5, dtype=torch.float64) * 3 for _ in range(count)]
    torch.testing.assert_close(ensemble(logits), slow_ensemble(logits))


def test_ensemble_rows_are_probabilities():
    torch.manual_seed(0)
    probabilities = ensemble([torch.randn(6, 5) for _ in range(3)])
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(6))


def test_ensemble_averages_probabilities_not_logits():
    first, last = torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert (first / 3 + last * 2 / 3).argmax().item() == 0
    assert ensemble([first, last]).argmax().item() == 1


def test_ensemble_of_one_block_is_its_softmax():
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    torch.testing.assert_close(ensemble([logits]), logits.softmax(dim=1))
