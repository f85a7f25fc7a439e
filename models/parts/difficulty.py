"""How hard each block's own task is: a schedule over the depth.

The second study of A. Patel's thesis (Concordia, 2023) says that blocks trained by a local contrastive loss lose
task-relevant information early, and that a task which gets harder with depth prevents it. Which knob it turned is
not known to us. The schedule and the knobs here are ours (section 13 of the method sheet): call what they give
"depth-difficulty", not a reproduction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import isclose
from typing import Literal

from losses.errors import UsageError
from ranges import PositiveFloat, PositiveInt, Share

Mode = Literal["rising", "constant_full", "constant_mean", "reversed", "reversed_keep_last"]


@dataclass
class Difficulty:
    """d_k in 0 … 1 for every block, and what it sets.

    ``rising`` goes from ``easiest`` to ``hardest``: d_k = easiest + (hardest − easiest) · ((k − 1) / (K − 1))^power.
    Controls: ``constant_full`` (all at ``hardest``: plain local learning), ``constant_mean`` (all at the mean of the
    rising values), ``reversed``, and ``reversed_keep_last``, whose last block, which is evaluated, has the full task.

    What d sets equals the ordinary recipe at d = 1. A control that comes to the same as another mode is none: it is
    refused.

    Args:
        mode: the course over the depth.
        easiest: smallest d.
        hardest: largest d.
        power: curvature; 1 is a straight line.
        values: d of each block, instead of a mode.
        views: blocks take the pair of views whose strength (``data.views.levels``) is nearest to their d.
        easy_temperature: τ = easy_temperature^(1 − d) · τ_recipe^d, the loss multiplied by τ / τ_recipe, because
            gradients go as 1 / τ; None leaves the temperature alone.
        easy_negatives: round(easy_negatives + d · (2B − 2 − easy_negatives)) negatives per anchor
            (``losses.SubsampledNTXent``, which also says which are taken); None leaves them alone.

    Raises:
        UsageError: values outside 0 … 1, ``easiest`` above ``hardest``, or nothing that d would set.
    """

    mode: Mode = "rising"
    easiest: Share = 0.0
    hardest: Share = 1.0
    power: PositiveFloat = 1.0
    values: list[Share] = field(default_factory=list)
    views: bool = False
    easy_temperature: PositiveFloat | None = None
    easy_negatives: PositiveInt | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.easiest <= self.hardest <= 1 or not all(0 <= d <= 1 for d in self.values):
            raise UsageError(
                "Difficulties are between 0 and 1, easiest at most hardest, not "
                f"{self.values or [self.easiest, self.hardest]}."
            )
        knobs = self.views, self.easy_temperature is not None, self.easy_negatives is not None
        if self._course != _PLAIN and not any(knobs):
            raise UsageError(f"{self._option} sets nothing: give difficulty.views, easy_temperature or easy_negatives.")

    @property
    def _course(self) -> str:
        return "values" if self.values else self.mode

    @property
    def _option(self) -> str:
        return "difficulty.values" if self.values else f"difficulty.mode {self.mode}"

    def of_blocks(self, num_blocks: int) -> list[float]:
        """The d of each block, first block first.

        Raises:
            UsageError: ``values`` are given, but not one per block; or a plainer mode comes to the same.
        """
        if self.values and len(self.values) != num_blocks:
            raise UsageError(
                f"difficulty.values names {len(self.values)} difficulties for {num_blocks} blocks: give one each."
            )
        courses = self._courses(num_blocks)
        if twin := _twin(self._course, courses):
            raise UsageError(
                f"With num_blocks {num_blocks} and difficulties from {self.easiest:g} to {self.hardest:g}, "
                f"{self._option} comes to the same as {twin}: take that, more blocks or another range."
            )
        return courses[self._course]

    def view_strengths(self, num_blocks: int, levels: Sequence[float]) -> list[float]:
        """Strength of the views that each block takes: of the levels that the data give, the one nearest to its d.

        Without the knob ``views`` it is the largest level.

        Raises:
            UsageError: at these levels a plainer mode comes to the same.
        """
        if not self.views:
            return [max(levels)] * num_blocks
        courses = self._courses(num_blocks)
        strengths = {course: [nearest(d, levels) for d in values] for course, values in courses.items()}
        if twin := _twin(self._course, strengths):
            raise UsageError(
                f"With views of strength {', '.join(f'{level:g}' for level in levels)}, {self._option} comes to "
                f"the same as {twin}: set data.views.levels, for example to "
                f"{sorted({*(round(d, 3) for d in courses[self._course]), 1.0})}."
            )
        return strengths[self._course]

    def negatives(self, difficulty: float, most: int) -> int:
        """Negatives per anchor at a difficulty, of those that a batch has: ``easy_negatives`` at 0, all at 1.

        Raises:
            UsageError: ``easy_negatives`` are none, or not fewer than all.
        """
        easy = self.easy_negatives or 0
        if not 0 < easy < most:
            raise UsageError(
                f"difficulty.easy_negatives must be between 1 and {most - 1}, not {easy}: an anchor of this batch has "
                f"{most} negatives, and easier is fewer."
            )
        return round(easy + difficulty * (most - easy))

    def _courses(self, num_blocks: int) -> dict[str, list[float]]:
        """Mode → the d of each block, the plainest first; of given values, these and the plainest."""
        depths = [k / (num_blocks - 1) for k in range(num_blocks)] if num_blocks > 1 else [1.0]
        span = self.hardest - self.easiest
        rising = [self.easiest + span * depth**self.power for depth in depths]
        courses = {mode: course(rising) for mode, course in _COURSES.items()}
        return {_PLAIN: courses[_PLAIN], "values": list(self.values)} if self.values else courses


def _twin(own: str, courses: Mapping[str, Sequence[float]]) -> str | None:
    """The plainer course that is the same in every block, if there is one."""
    plainer = takewhile(lambda course: course != own, courses)
    return next((course for course in plainer if all(map(isclose, courses[course], courses[own]))), None)


_PLAIN = "constant_full"

_COURSES = {
    _PLAIN: lambda rising: [rising[-1]] * len(rising),
    "rising": lambda rising: rising,
    "constant_mean": lambda rising: [sum(rising) / len(rising)] * len(rising),
    "reversed": lambda rising: rising[::-1],
    "reversed_keep_last": lambda rising: [*rising[-2::-1], rising[-1]],
}


def nearest(value: float, choices: Sequence[float]) -> float:
    """The choice that is nearest to a value; of two at the same distance the larger."""
    return min(choices, key=lambda choice: (abs(choice - value), -choice))
