"""Learning-rate schedules against the formulas of the papers."""

import math

import pytest
import torch
from torch.optim import SGD

from models.parts.warmup_cosine import WarmupCosine


def scheduled(lr=0.8, **options):
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return optimizer, WarmupCosine(optimizer, **options)


def rates(optimizer, schedule, count):
    """Learning rate in the next ``count`` epochs."""
    seen = []
    for _ in range(count):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def published_rate(epoch):
    cosine = 0.4 * (1 + math.cos(math.pi * epoch / 160))
    return cosine * (epoch - 1) / 10 + 0.001 * (11 - epoch) if epoch <= 10 else cosine


def test_rate_is_the_published_one_in_every_epoch_and_zero_after_the_last():
    expected = [published_rate(epoch) for epoch in range(1, 161)] + [0] * 10
    assert (expected[0], expected[79], max(expected)) == pytest.approx((0.01, 0.4, expected[10]))
    assert rates(*scheduled(), 170) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 2])
def test_other_lengths_and_peaks(warmup):
    expected = [0.1 * (1 + math.cos(math.pi * epoch / 6)) for epoch in range(1, 7)]
    expected[:warmup] = [0.04, expected[1] / 2 + 0.02][:warmup]
    assert rates(*scheduled(0.2, epochs=6, warmup=warmup, start=0.1), 6) == pytest.approx(expected)


def test_goes_on_from_a_checkpoint():
    whole, resumed = scheduled(), scheduled()
    rates(*whole, 7)
    for ours, theirs in zip(resumed, whole, strict=True):
        ours.load_state_dict(theirs.state_dict())
    assert rates(*resumed, 2) == pytest.approx([published_rate(8), published_rate(9)])


def test_a_restored_schedule_has_the_length_of_the_one_that_was_saved():
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    saved, other = WarmupCosine(optimizer, epochs=4, warmup=1), WarmupCosine(optimizer, epochs=8, warmup=2)
    other.load_state_dict(saved.state_dict())
    assert [saved.lr_lambdas[0](epoch) for epoch in range(6)] == [other.lr_lambdas[0](epoch) for epoch in range(6)]
