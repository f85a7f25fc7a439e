"""Who learns when, and how often a step passes each part."""

from models.plan import Schedule


def test_all_parts_learn_in_every_epoch():
    schedule = Schedule(3)
    assert [schedule.learners(epoch) for epoch in (0, 7)] == [range(3), range(3)]
    assert schedule.epochs is None
    assert schedule.forward_passes == schedule.backward_passes == [1, 1, 1]


def test_one_part_learns_after_the_other():
    schedule = Schedule(4, epochs_per_block=2)
    assert [schedule.learners(epoch).start for epoch in range(9)] == [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert all(len(schedule.learners(epoch)) == 1 for epoch in range(9))
    assert schedule.epochs == 8
    assert schedule.forward_passes == [1, 0.75, 0.5, 0.25]  # frozen parts go on forward
    assert schedule.backward_passes == [0.25] * 4
