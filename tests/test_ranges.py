"""Numbers in a range: what the command line reads as one."""

import math

import pytest
from jsonargparse import ArgumentParser

import ranges

REFUSED = ["x", "nan", math.nan, True, [1]]


@pytest.mark.parametrize(
    ("kind", "inside", "outside"),
    [
        ("PositiveInt", [1, "7"], [0, -1, 1.0, "1.0", 0.5, math.inf]),
        ("NonNegativeInt", [0, 1, "7"], [-1, 0.0, math.inf]),
        ("PositiveFloat", [1e-300, 1, "7", "1e-3"], [0, -0.0, -1e-300, math.inf]),
        ("NonNegativeFloat", [0, 0.0, 1, "7"], [-1e-300, math.inf]),
        ("Share", [0, 1, 0.5, "1e-3"], [-1e-300, 1.0001, math.inf]),
    ],
)
def test_a_range_ends_where_it_says(kind, inside, outside):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--number", type=getattr(ranges, kind))
    for value in inside:
        number = parser.parse_object({"number": value}).number
        assert number == float(value)
        assert type(number) is (int if kind.endswith("Int") else float)  # a subclass would be in checkpoints
    for value in outside + REFUSED:
        with (
            pytest.raises(Exception, match=r"is no (whole )?number") if value is not None else pytest.raises(Exception)
        ):
            parser.parse_object({"number": value})
