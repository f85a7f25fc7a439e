"""Who learns when, and how often a step passes each part."""

import pytest

from losses.errors import UsageError
from models.plan import Schedule


def test_all_parts_learn_in_every_epoch():
    schedule = Schedule(3)
    assert [schedule.learners(epoch) for epoch in (0, 7)] == [range(3), range(3)]
    assert schedule.epochs is None
    assert schedule.turn(7, 9) == (7, 9)
    assert schedule.forward_passes == schedule.backward_passes == [1, 1, 1]


def test_one_part_learns_after_the_other():
    schedule = Schedule(4, epochs_per_block=2)
    assert [schedule.learners(epoch).start for epoch in range(9)] == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert all(len(schedule.learners(epoch)) == 1 for epoch in range(9))
    assert schedule.epochs == 8
    assert schedule.forward_passes == [1, 0.75, 0.5, 0.25]  # frozen parts go on forward
    assert schedule.backward_passes == [0.25] * 4
    assert schedule == Schedule(4, 2)
    assert Schedule(4, [2, 2, 2, 2]).lengths == schedule.lengths


def test_each_part_has_its_own_number_of_epochs():
    schedule = Schedule(3, [4, 1, 3])
    assert [schedule.learners(epoch).start for epoch in range(9)] == [0, 0, 0, 0, 1, 2, 2, 2, 2]
    assert [schedule.first_epoch(k) for k in range(3)] == [0, 4, 5]
    assert [schedule.turn(epoch) for epoch in (0, 3, 4, 5, 7)] == [(0, 4), (3, 4), (0, 1), (0, 3), (2, 3)]
    assert schedule.epochs == 8
    assert schedule.forward_passes == [1, 4 / 8, 3 / 8]
    assert schedule.backward_passes == [4 / 8, 1 / 8, 3 / 8]


def test_a_shorter_part_takes_the_steps_of_the_longest_one_wherever_that_stands():
    schedule = Schedule(3, [2, 5, 3])
    assert [schedule.stride(epoch) for epoch in range(10)] == [2, 3, 1, 1, 1, 1, 1, 1, 2, 2]
    assert Schedule(3).stride(7) == 1


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        (0, "at least 1, not 0"),
        ([2, 0, 1], r"at least 1, not \[2, 0, 1\]"),
        ([4, 2], r"epochs of 2 blocks, \[4, 2\], but 3 learn one after the other"),
        ([4, 2, 1, 1], "epochs of 4 blocks"),
    ],
)
def test_epochs_that_are_none_or_of_other_parts_are_refused(epochs, message):
    with pytest.raises(UsageError, match=message):
        Schedule(3, epochs)


def test_frozen_parts_go_forward_and_never_learn():
    schedule = Schedule(4, frozen=2)
    assert [schedule.learners(epoch) for epoch in (0, 5)] == [range(2, 4)] * 2
    assert (schedule.forward_passes, schedule.backward_passes) == ([1, 1, 1, 1], [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("frozen", "epochs", "message"),
    [(-1, None, "leave one of 3 to learn: 0 to 2"), (3, None, "leave one of 3"), (1, 2, "leave epochs_per_block out")],
)
def test_some_part_learns_and_frozen_ones_wait_for_none(frozen, epochs, message):
    with pytest.raises(UsageError, match=message):
        Schedule(3, epochs, frozen)


def test_schedules_of_their_own_are_gone_through_step_by_step():
    schedule = Schedule(2, [1, 4], own_rates=True)
    assert [schedule.stride(epoch) for epoch in range(5)] == [1] * 5
    schedule.require_fit(5, "step")
    assert Schedule(2, [1, 4]).stride(0) == 4
