"""A learning rate that stays as it is for half of the training, and then falls to zero."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ranges import PositiveInt


class ConstantThenLinear(LambdaLR):
    """Hinton's schedule for Forward-Forward; step it once per epoch.

    In epoch e = 1 … E the rate is lr up to E / 2, then lr · (1 + 2 (E − e)) / E, of which the last is lr / E. torch's
    ``SequentialLR`` would need two schedules and their milestone.

    Args:
        optimizer: its ``lr`` is that of the first half.
        epochs: E.
    """

    def __init__(self, optimizer: Optimizer, epochs: PositiveInt) -> None:
        super().__init__(optimizer, _Factor(epochs))


class _Factor:
    """Finished epochs → share of the rate. An object, since schedules keep those in checkpoints, and functions not."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def __call__(self, finished: int) -> float:
        epoch = finished + 1
        return 1.0 if epoch <= self.epochs / 2 else max(1 + 2 * (self.epochs - epoch), 0) / self.epochs
