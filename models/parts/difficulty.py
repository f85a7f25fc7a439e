"""How hard each block's own task is: a schedule over the depth.

The second study of A. Patel's thesis (Concordia, 2023) says that blocks trained by a local contrastive loss lose
task-relevant information early, and that a task which gets harder with depth prevents it. Which knob it turned is
not known to us. The schedule and the knobs here are ours (section 13 of the method sheet): call what they give
"depth-difficulty", not a reproduction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from losses.errors import UsageError

Mode = Literal["rising", "constant_full", "constant_mean", "reversed", "reversed_keep_last"]


@dataclass
class Difficulty:
    """d_k in 0 … 1 for every block, and what it sets.

    ``rising`` goes from ``easiest`` to ``hardest``: d_k = easiest + (hardest − easiest) · ((k − 1) / (K − 1))^power.
    Controls: ``constant_full`` (all at ``hardest``: plain local learning), ``constant_mean`` (all at the mean of the
    rising values), ``reversed``, and ``reversed_keep_last``, whose last block, which is evaluated, has the full task.

    What d sets equals the ordinary recipe at d = 1.

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
        UsageError: values outside 0 … 1, or ``easiest`` above ``hardest``.
    """

    mode: Mode = "rising"
    easiest: float = 0.0
    hardest: float = 1.0
    power: float = 1.0
    values: list[float] = field(default_factory=list)
    views: bool = False
    easy_temperature: float | None = None
    easy_negatives: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.easiest <= self.hardest <= 1 or not all(0 <= d <= 1 for d in self.values):
            raise UsageError(
                "Difficulties are between 0 and 1, easiest at most hardest, not "
                f"{self.values or [self.easiest, self.hardest]}."
            )

    def of_blocks(self, num_blocks: int) -> list[float]:
        """The d of each block, first block first.

        Raises:
            UsageError: ``values`` are given, but not one per block.
        """
        if self.values:
            if len(self.values) != num_blocks:
                raise UsageError(
                    f"difficulty.values names {len(self.values)} difficulties for {num_blocks} blocks: give one each."
                )
            return list(self.values)
        depths = [k / (num_blocks - 1) for k in range(num_blocks)] if num_blocks > 1 else [1.0]
        span = self.hardest - self.easiest
        return _COURSES[self.mode]([self.easiest + span * depth**self.power for depth in depths])


_COURSES = {
    "rising": lambda rising: rising,
    "constant_full": lambda rising: [rising[-1]] * len(rising),
    "constant_mean": lambda rising: [sum(rising) / len(rising)] * len(rising),
    "reversed": lambda rising: rising[::-1],
    "reversed_keep_last": lambda rising: [*rising[-2::-1], rising[-1]],
}


def nearest(value: float, choices: Sequence[float]) -> float:
    """The choice that is nearest to a value; of two at the same distance the larger."""
    return min(choices, key=lambda choice: (abs(choice - value), -choice))
