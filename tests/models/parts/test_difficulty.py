"""Difficulty over the depth: the courses, what they set, and what is refused."""

import pytest

from losses.errors import UsageError
from models.parts.difficulty import Difficulty, nearest


@pytest.mark.parametrize(
    ("mode", "course"),
    [
        ("rising", [0.2, 0.4, 0.6, 0.8]),
        ("constant_full", [0.8] * 4),
        ("constant_mean", [0.5] * 4),
        ("reversed", [0.8, 0.6, 0.4, 0.2]),
        ("reversed_keep_last", [0.6, 0.4, 0.2, 0.8]),
    ],
)
def test_courses(mode, course):
    assert Difficulty(mode, easiest=0.2, hardest=0.8, views=True).of_blocks(4) == pytest.approx(course)


def test_power_bends_the_course():
    assert Difficulty("rising", power=2, views=True).of_blocks(3) == pytest.approx([0, 0.25, 1])


def test_values_are_taken_as_they_are():
    assert Difficulty(values=[0.5, 0.1], views=True).of_blocks(2) == [0.5, 0.1]


def test_one_block_has_the_full_task():
    assert Difficulty("constant_full").of_blocks(1) == [1]


@pytest.mark.parametrize("arguments", [{"easiest": 0.8, "hardest": 0.2}, {"hardest": 1.5}, {"values": [0.2, -0.1]}])
def test_difficulties_outside_0_and_1_are_refused(arguments):
    with pytest.raises(UsageError, match="between 0 and 1"):
        Difficulty(**arguments)


@pytest.mark.parametrize("arguments", [{"mode": "reversed"}, {"values": [0.5, 1.0]}])
def test_a_course_that_sets_nothing_is_refused(arguments):
    with pytest.raises(UsageError, match=r"(mode reversed|values) sets nothing: give difficulty.views"):
        Difficulty(**arguments)


@pytest.mark.parametrize(
    ("mode", "num_blocks", "easiest", "twin"),
    [
        ("rising", 1, 0.2, "constant_full"),
        ("constant_mean", 4, 1.0, "constant_full"),
        ("reversed_keep_last", 2, 0.2, "rising"),
    ],
)
def test_a_mode_that_comes_to_the_same_as_a_plainer_one_is_refused(mode, num_blocks, easiest, twin):
    with pytest.raises(UsageError, match=f"num_blocks {num_blocks} .*mode {mode} comes to the same as {twin}"):
        Difficulty(mode, easiest, easy_temperature=1.0).of_blocks(num_blocks)


def test_nearest_level_prefers_the_harder():
    assert [nearest(d, [0.25, 1.0]) for d in (0.0, 0.5, 0.625, 0.7, 1.0)] == [0.25, 0.25, 1.0, 1.0, 1.0]


def test_blocks_take_the_nearest_views_or_the_strongest_without_the_knob():
    levels = [0.25, 0.625, 1.0]
    assert Difficulty("rising", 0.25, views=True).view_strengths(4, levels) == [0.25, 0.625, 0.625, 1.0]
    assert Difficulty("constant_mean", 0.25, views=True).view_strengths(4, levels) == [0.625] * 4
    assert Difficulty("rising", 0.25, easy_temperature=1.0).view_strengths(4, levels) == [1.0] * 4


@pytest.mark.parametrize(
    ("arguments", "levels", "enough"),
    [
        ({"mode": "constant_mean"}, [0.25, 1.0], [0.625, 1.0]),  # 0.625 lies in the middle, and the harder is taken
        ({"mode": "rising"}, [1.0], [0.25, 0.5, 0.75, 1.0]),
        ({"values": [0.7, 0.8, 0.9, 1.0]}, [0.25, 1.0], [0.7, 0.8, 0.9, 1.0]),
    ],
    ids=["tie", "one level", "values"],
)
def test_levels_at_which_views_come_to_the_same_are_refused_with_some_that_do_not(arguments, levels, enough):
    difficulty = Difficulty(easiest=0.25, views=True, **arguments)
    with pytest.raises(UsageError) as fault:
        difficulty.view_strengths(4, levels)
    assert str(fault.value).endswith(
        f"comes to the same as constant_full: set data.views.levels, for example to {enough}."
    )
    assert difficulty.view_strengths(4, enough) == difficulty.of_blocks(4)


def test_negatives_go_from_the_easy_number_to_all():
    difficulty = Difficulty(easy_negatives=16)
    assert [difficulty.negatives(d, 1022) for d in (0, 0.5, 2 / 3, 1)] == [16, 519, 687, 1022]


@pytest.mark.parametrize("easy", [0, 30, 31])
def test_a_number_of_negatives_that_is_not_easier_is_refused(easy):
    with pytest.raises(UsageError, match=f"between 1 and 29, not {easy}"):
        Difficulty(easy_negatives=easy).negatives(0.5, 30)
