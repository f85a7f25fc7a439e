"""The schedule of Forward-Forward against its formula."""

import pytest
import torch
from torch.optim import SGD

from models.parts.constant_linear import ConstantThenLinear


@pytest.mark.parametrize(
    ("epochs", "shares"), [(4, [1, 1, 3 / 4, 1 / 4, 0]), (5, [1, 1, 1, 3 / 5, 1 / 5, 0]), (1, [1, 0])]
)
def test_rate_stays_and_then_falls_to_its_share(epochs, shares):
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    schedule, seen = ConstantThenLinear(optimizer, epochs), []
    for _ in shares:
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([0.2 * share for share in shares])


def test_a_restored_schedule_has_the_length_of_the_one_that_was_saved():
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    saved, other = ConstantThenLinear(optimizer, 4), ConstantThenLinear(optimizer, 8)
    other.load_state_dict(saved.state_dict())
    assert [saved.lr_lambdas[0](epoch) for epoch in range(6)] == [other.lr_lambdas[0](epoch) for epoch in range(6)]
