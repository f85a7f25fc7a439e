"""Goodness, its loss, peers, wrong labels and hybrids: by hand, by the published signals, and by counting."""

import pytest
import torch
from reference.forward_forward import blurred
from scipy.stats import chisquare

from losses.goodness import (
    Goodness,
    PeerNormalisation,
    hybrid_masks,
    hybrids,
    logistic_loss,
    separation,
    unit_length,
    wrong_labels,
)


def test_goodness_by_hand():
    rows = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert Goodness().of(rows).tolist() == [5, 9]
    assert Goodness("mean").of(rows).tolist() == [2.5, 4.5]
    assert Goodness().of(torch.ones(2, 3, 4, 5)).tolist() == [60, 60]
    assert Goodness(threshold=2, temperature=4).logits(torch.tensor([5.0, 9.0]), 2).tolist() == [0.25, 1.25]
    assert Goodness("mean", threshold=2, temperature=0.5).logits(torch.tensor([2.5]), 2).tolist() == [1]


def test_halves_are_added_up_in_full_precision():
    rows = torch.randn(4, 1000).bfloat16()
    assert torch.equal(Goodness().of(rows), Goodness().of(rows.float()))
    assert torch.equal(unit_length(rows), unit_length(rows.float()))
    ours, theirs = PeerNormalisation(1000), PeerNormalisation(1000)
    assert torch.equal(ours(rows), theirs(rows.float()))
    assert torch.equal(ours.mean, theirs.mean)


@pytest.mark.parametrize("over", ["sum", "mean"])
def test_rows_of_ones_are_as_likely_positive_as_not(over):
    goodness, rows = Goodness(over), torch.ones(3, 7)
    assert goodness.logits(goodness.of(rows), 7).sigmoid().tolist() == [0.5] * 3


def test_gradient_is_the_published_signal_over_the_batch():
    """(1 − p) h up for positive rows, p h down for negative ones, added up and divided by B."""
    torch.manual_seed(0)
    x, goodness = torch.randn(10, 4, requires_grad=True), Goodness()
    h = x.relu()
    logits = goodness.logits(goodness.of(h), 4)
    logistic_loss(*logits.chunk(2)).backward()
    p = logits.detach().sigmoid()[:, None]
    signal = torch.cat([-(1 - p[:5]) * h[:5], p[5:] * h[5:]]) / 5
    torch.testing.assert_close(x.grad, signal)


def test_gradient_of_one_row():
    """− 2 (1 − p) h of − log p, and 2 p h of − log (1 − p)."""
    x = torch.tensor([[1.5, 0.5]], requires_grad=True)
    for side, expected in ((0, lambda p, h: -2 * (1 - p) * h), (1, lambda p, h: 2 * p * h)):
        logit = Goodness().logits(Goodness().of(x), 2)
        certain = torch.full((1,), 1e4)
        loss = logistic_loss(logit, -certain) if side == 0 else logistic_loss(certain, logit)
        (gradient,) = torch.autograd.grad(2 * loss, x)
        torch.testing.assert_close(gradient, expected(logit.sigmoid(), x).detach())


def test_separation_counts_both_sides():
    assert separation(torch.tensor([1.0, 2.0, -1.0, 3.0]), torch.tensor([-1.0, -2.0, 1.0, 5.0])) == 0.625


def test_unit_length():
    rows = torch.randn(3, 2, 4, 5) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None, None]
    found = unit_length(rows)
    torch.testing.assert_close(found.square().mean((1, 2, 3)), torch.ones(3))
    torch.testing.assert_close(unit_length(7 * rows), found)
    assert not unit_length(torch.zeros(2, 3)).any()


def test_peers_by_hand():
    peers = PeerNormalisation(2, weight=0.03)
    rows = torch.tensor([[1.0, 0.0], [3.0, 0.0]], requires_grad=True)
    loss = peers(rows)
    torch.testing.assert_close(peers.mean, torch.tensor([0.65, 0.45]))  # 0.9 · 0.5 + 0.1 · (2, 0)
    loss.backward()
    # 0.03 (mean of all − own) / B, with the other sign: a silent unit is drawn up, a loud one down
    torch.testing.assert_close(rows.grad, torch.tensor([[0.1, -0.1], [0.1, -0.1]]) * 0.03 / 2)
    torch.testing.assert_close(loss.detach(), torch.tensor(0.03 * 0.1 * 2))
    peers(rows.detach())
    torch.testing.assert_close(peers.mean, torch.tensor([0.785, 0.405]))


def test_wrong_labels_follow_the_softmax_without_the_true_class():
    torch.manual_seed(0)
    count, logits = 20000, torch.tensor([2.0, 0.5, -1.0, 1.0])
    labels = torch.tensor([0, 3]).repeat(count // 2)
    wrong = wrong_labels(labels, logits.expand(count, 4))
    assert wrong.dtype == torch.int64
    for true in (0, 3):
        p = logits.softmax(0)
        p[true] = 0
        seen = wrong[labels == true].bincount(minlength=4)
        assert seen[true] == 0
        rest = [c for c in range(4) if c != true]
        shares = p[rest].double()
        expected = shares / shares.sum() * seen.sum()
        assert chisquare(seen[rest].numpy(), expected.numpy()).pvalue > 0.01


def test_masks_are_blurred_bits():
    images = torch.zeros(4, 3, 9, 7)
    for blurs in (0, 1, 6):
        torch.manual_seed(1)
        masks = hybrid_masks(images, blurs)
        torch.manual_seed(1)
        bits = torch.full((4, 1, 9, 7), 0.5).bernoulli()
        expected = torch.tensor([blurred(one.tolist(), blurs) for one in bits[:, 0]])[:, None]
        assert torch.equal(masks, (expected > 0.5).float())


def test_masks_have_large_regions():
    torch.manual_seed(0)
    bits, masks = (hybrid_masks(torch.zeros(200, 1, 28, 28), blurs) for blurs in (0, 8))
    assert set(masks.unique().tolist()) == {0, 1}
    assert masks.mean().item() == pytest.approx(0.5, abs=0.05)
    alike = [(m[..., 1:] == m[..., :-1]).float().mean().item() for m in (bits, masks)]
    assert alike == [pytest.approx(0.5, abs=0.01), pytest.approx(0.88, abs=0.05)]


def test_every_pixel_of_a_hybrid_is_of_one_of_the_images():
    torch.manual_seed(0)
    a, b = torch.rand(2, 5, 3, 8, 8)
    masks = hybrid_masks(a, 4)
    made = hybrids(a, b, masks)
    on = masks.bool().expand_as(a)
    assert torch.equal(made[on], a[on])
    assert torch.equal(made[~on], b[~on])
    assert torch.equal(hybrids(a, a, masks), a)
