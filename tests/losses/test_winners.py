"""Targets that outputs define themselves, against the slow reference and by hand."""

import pytest
import torch
from reference.self_defined_target import SlowTargets

from losses.errors import UsageError
from losses.winners import WinnerTakeAll

SETTINGS = {
    "plain": {"winners": 2, "rate": 0.4},
    "masked": {"winners": 3, "rate": 0.5, "dropout": 0.3},
    "smoothed": {"winners": 2, "rate": 0.3, "dropout": 0.2, "smoothing": 0.3},
    "sequential": {"winners": 1, "rate": 0.7, "memory": 0.6},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_targets_are_those_of_the_slow_reference(name):
    ours, theirs = WinnerTakeAll(9, **SETTINGS[name]), SlowTargets(9, **SETTINGS[name])
    for _ in range(6):
        y = torch.rand(1 if name == "sequential" else 5, 9)
        mask = ours.mask(y)
        torch.testing.assert_close(ours(mask * y, mask), theirs(mask * y, mask))
    torch.testing.assert_close(ours.threshold, torch.tensor(theirs.threshold))


def test_by_hand():
    rule = WinnerTakeAll(3, winners=1, rate=1.0)
    y, everybody = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.7, 0.0]]), torch.ones(2, 3)
    assert rule(y, everybody).tolist() == [[1, 0, 0], [1, 0, 0]]
    torch.testing.assert_close(rule.threshold, torch.tensor([2 / 3, -1 / 3, -1 / 3]))
    assert rule(y, everybody).tolist() == [[0, 1, 0], [0, 1, 0]]
    assert rule.wins.tolist() == [2, 2, 0]
    rule.begin_epoch()
    assert rule.threshold.tolist() == rule.wins.tolist() == [0, 0, 0]


def test_sequential_means_remember():
    rule = WinnerTakeAll(2, winners=1, rate=1.0, memory=0.6)
    for y in ([0.6, 0.4], [0.6, 0.4]):
        rule(torch.tensor([y]), torch.ones(1, 2))
    # T̄ = (0.6, 0), H = (0.1, −0.5): the second one wins; T̄ = (0.24, 0.6), H = (0.1 − 0.26, −0.5 + 0.1).
    torch.testing.assert_close(rule.threshold, torch.tensor([-0.16, -0.4]))


def test_k_outputs_of_each_image_win_and_smoothing_keeps_their_sum():
    y, everybody = torch.rand(7, 20), torch.ones(7, 20)
    assert WinnerTakeAll(20, winners=4)(y, everybody).sum(1).tolist() == [4] * 7
    torch.testing.assert_close(WinnerTakeAll(20, winners=4, smoothing=0.3)(y, everybody).sum(1), torch.full((7,), 4.0))


def test_wins_are_counted_whole_whether_masked_or_smoothed():
    rule, y = WinnerTakeAll(10, winners=3, dropout=0.5, smoothing=0.3), torch.rand(6, 10)
    rule(y, torch.zeros(6, 10))
    expected = torch.zeros(6, 10).scatter_(1, y.topk(3, dim=1).indices, 1.0).sum(0)
    assert torch.equal(rule.wins, expected)


def test_masked_outputs_have_no_error_and_others_that_of_the_mean_square():
    rule = WinnerTakeAll(10, winners=3, dropout=0.4)
    y = torch.rand(6, 10, requires_grad=True)
    mask = rule.mask(y)
    kept = mask * y
    target = rule(kept.detach(), mask)
    (kept - target).square().mean().backward()
    torch.testing.assert_close(y.grad, 2 * mask * (y.detach() - target) / 60)
    assert 0 < mask.mean() < 1
    assert not (target * (1 - mask)).any()


def test_masks_leave_the_share_out_that_is_asked_for():
    mask = WinnerTakeAll(100, dropout=0.2).mask(torch.empty(1000, 100))
    assert mask.unique().tolist() == [0, 1]
    assert mask.mean().item() == pytest.approx(0.8, abs=0.01)
    assert WinnerTakeAll(100).mask(torch.empty(10, 100)).all()


def test_a_shift_of_all_thresholds_changes_no_winner():
    one, other = WinnerTakeAll(12, winners=3), WinnerTakeAll(12, winners=3)
    other.threshold += 5.0
    for _ in range(4):
        y = torch.rand(5, 12, dtype=torch.float64).float()
        assert torch.equal(one(y, torch.ones(5, 12)), other(y, torch.ones(5, 12)))
    torch.testing.assert_close(other.threshold - one.threshold, torch.full((12,), 5.0))


def test_with_batches_thresholds_count_wins():
    rule = WinnerTakeAll(12, winners=3, rate=0.5)
    for _ in range(4):
        rule(torch.rand(5, 12), torch.ones(5, 12))
    rise = rule.threshold - 0.5 / 5 * rule.wins
    torch.testing.assert_close(rise, rise[:1].expand(12))
    assert rule.threshold.sum().item() == pytest.approx(0, abs=1e-5)


def test_settings_are_the_published_ones_unless_told():
    rule = WinnerTakeAll(20)
    assert (rule.winners, rule.rate, rule.dropout, rule.smoothing, rule.memory) == (6, 0.4, 0, 0, None)


@pytest.mark.parametrize("options", [{"winners": 11}, {"winners": 0}, {"dropout": 1.0}])
def test_impossible_targets_are_refused(options):
    with pytest.raises(UsageError, match="choose"):
        WinnerTakeAll(10, **options)
