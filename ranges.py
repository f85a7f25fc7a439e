"""Numbers in a range, as types of options: ``clip: PositiveFloat``.

The command line refuses what is outside of the range, and builds with plain numbers, which checkpoints and compilers
know. In Python, and to mypy, they are int and float.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import register_type


def _numbers(name: str, kind: type, words: str, inside: Callable[[float], bool]) -> type:
    """A type of numbers; ``words``: what these are."""

    def read(value: Any) -> Any:
        try:
            number = kind(value)
            if type(value) in (str, int, kind) and inside(number):
                return number
        except (ValueError, TypeError, OverflowError):  # no number at all
            pass
        raise ValueError(f"{getattr(value, 'val', value)} is no {words}")  # of jsonargparse's NestedArg, key and value

    numbers = type(name, (kind,), {"__doc__": f"A {words}.", "__module__": __name__})
    register_type(numbers, kind, read, type_check=lambda value, _: False)  # every value is read
    return numbers


if TYPE_CHECKING:
    from builtins import float as NonNegativeFloat
    from builtins import float as PositiveFloat
    from builtins import float as Share
    from builtins import int as NonNegativeInt
    from builtins import int as PositiveInt
else:
    PositiveInt = _numbers("PositiveInt", int, "whole number above 0", lambda n: n > 0)
    NonNegativeInt = _numbers("NonNegativeInt", int, "whole number from 0 on", lambda n: n >= 0)
    PositiveFloat = _numbers("PositiveFloat", float, "number above 0", lambda x: 0 < x < math.inf)
    NonNegativeFloat = _numbers("NonNegativeFloat", float, "number from 0 on", lambda x: 0 <= x < math.inf)
    Share = _numbers("Share", float, "number from 0 to 1", lambda x: 0 <= x <= 1)
