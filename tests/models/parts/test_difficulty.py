"""Difficulty over the depth: the courses and what they refuse."""

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
    difficulty = Difficulty(mode, easiest=0.2, hardest=0.8)
    assert difficulty.of_blocks(4) == pytest.approx(course)
    assert difficulty.of_blocks(1) == pytest.approx([0.8])  # one block has the full task


def test_power_bends_the_course():
    assert Difficulty("rising", power=2).of_blocks(3) == pytest.approx([0, 0.25, 1])


def test_values_are_taken_as_they_are():
    assert Difficulty(values=[0.5, 0.1]).of_blocks(2) == [0.5, 0.1]


@pytest.mark.parametrize("arguments", [{"easiest": 0.8, "hardest": 0.2}, {"hardest": 1.5}, {"values": [0.2, -0.1]}])
def test_difficulties_outside_0_and_1_are_refused(arguments):
    with pytest.raises(UsageError, match="between 0 and 1"):
        Difficulty(**arguments)


def test_nearest_level_prefers_the_harder():
    assert [nearest(d, [0.25, 1.0]) for d in (0.0, 0.5, 0.625, 0.7, 1.0)] == [0.25, 0.25, 1.0, 1.0, 1.0]
