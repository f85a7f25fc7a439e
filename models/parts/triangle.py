"""The learning-rate schedule of airbench."""

from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ranges import PositiveInt, Share


class Triangle(LambdaLR):
    """Up from ``start`` to the full rate, then down to ``end``, in straight lines; step it once per step.

    K. Jordan, arXiv 2404.00498, 2024: 476 steps, of which 109 (0.23) up from 0.2, then down to 0.07; with Muon 200
    steps down to 0 from the first.

    Args:
        optimizer: its ``lr`` is the peak.
        steps: of the training.
        peak: share of the steps until the full rate.
        start: share of the rate at step 0, if ``peak`` is not 0.
        end: share of the rate at the end, and after it.
        shift_steps: the biases behind weights that do not learn (group ``shifts`` of ``RoleSGD`` and ``Muon``) go down
            from the full rate to 0 in so many steps instead; by default they do as all others.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps: PositiveInt = 476,
        peak: Share = 0.23,
        start: Share = 0.2,
        end: Share = 0.07,
        shift_steps: PositiveInt | None = None,
    ) -> None:
        all_others = _Lines(steps, int(peak * steps), start, end)
        shifts = _Lines(shift_steps, 0, 1.0, 0.0) if shift_steps else all_others
        factors: list[Callable[[int], float]] = [
            shifts if group.get("role") == "shifts" else all_others for group in optimizer.param_groups
        ]
        super().__init__(optimizer, factors)


class _Lines:
    """Steps done → share of the rate. An object, since schedules keep those in checkpoints, and functions not."""

    def __init__(self, steps: int, top: int, start: float, end: float) -> None:
        self.steps, self.top, self.start, self.end = steps, top, start, end

    def __call__(self, done: int) -> float:
        if done < self.top:
            return self.start + (1 - self.start) * done / self.top
        return 1 + (self.end - 1) * min(1.0, (done - self.top) / max(1, self.steps - self.top))
