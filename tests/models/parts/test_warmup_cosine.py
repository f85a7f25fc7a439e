"""Learning-rate schedules against the formulas of the papers."""

import math

import pytest
import torch
from torch.optim import SGD

from models.parts.warmup_cosine import WarmupCosine


def optimizer(lr=0.8):
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)


def rates(count, lr=0.8, **kwargs):
    """Learning rate in epochs 1 … ``count``."""
    sgd, seen = optimizer(lr), []
    schedule = WarmupCosine(sgd, **kwargs)
    for _ in range(count):
        seen.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    return seen


def published_rate(epoch):
    cosine = 0.4 * (1 + math.cos(math.pi * epoch / 160))
    return cosine * (epoch - 1) / 10 + 0.001 * (11 - epoch) if epoch <= 10 else cosine


def test_warmup_cosine_has_the_published_rate_in_every_epoch():
    expected = [published_rate(epoch) for epoch in range(1, 161)]
    assert rates(160) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_warmup_cosine_begins_at_a_hundredth_and_ends_at_zero():
    seen = rates(160)
    assert seen[0] == pytest.approx(0.01)
    assert seen[79] == pytest.approx(0.4)
    assert seen[159] == pytest.approx(0, abs=1e-12)
    assert max(seen) == seen[10]


def test_warmup_cosine_stays_at_zero_after_the_last_epoch():
    assert rates(170)[160:] == pytest.approx([0] * 10, abs=1e-12)


def test_warmup_cosine_is_proportional_to_the_optimizers_rate():
    assert [r / 0.1 for r in rates(20, lr=0.1)] == pytest.approx([r / 0.8 for r in rates(20)])


def test_warmup_cosine_with_other_lengths():
    seen = rates(6, lr=1.0, epochs=6, warmup=2, start=0.1)
    cosine = [(1 + math.cos(math.pi * epoch / 6)) / 2 for epoch in range(1, 7)]
    assert seen == pytest.approx([0.2, cosine[1] / 2 + 0.1, *cosine[2:]])


def test_warmup_cosine_without_warmup_is_the_cosine():
    cosine = [(1 + math.cos(math.pi * epoch / 6)) / 2 for epoch in range(1, 7)]
    assert rates(6, lr=1.0, epochs=6, warmup=0) == pytest.approx(cosine)


def test_warmup_cosine_goes_on_from_a_checkpoint():
    sgd = optimizer()
    schedule = WarmupCosine(sgd)
    for _ in range(7):
        sgd.step()
        schedule.step()
    resumed = optimizer()
    continued = WarmupCosine(resumed)
    resumed.load_state_dict(sgd.state_dict())
    continued.load_state_dict(schedule.state_dict())
    assert resumed.param_groups[0]["lr"] == pytest.approx(published_rate(8))
    resumed.step()
    continued.step()
    assert resumed.param_groups[0]["lr"] == pytest.approx(published_rate(9))
