"""Where a run stands: which epoch it is in, and which images and batches that epoch has."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from datamodules.batch import Selection


class Epoch(NamedTuple):
    """One epoch of a run.

    Attributes:
        number: counted from 0.
        images: how many it has, those that its last batch leaves out included.
        batch_size: images per batch of one process.
        batches: how many these make, whatever the Trainer's limit.
        left: which of them are still to come, up to that limit.
    """

    number: int
    images: int
    batch_size: int
    batches: int
    left: slice


class Epochs:
    """The epochs of a run, which may differ in their images and in the size of their batches.

    It goes by the number of steps, which it is told: that resumes exactly, where ``trainer.current_epoch`` can be one
    too low.

    Args:
        images: of the training split.
        batch_size: images per batch of one process.
        batch_sizes: epoch → images per batch from that epoch (counted from 0) on.
        drop_last: leave a last, smaller batch out; by default it is kept, unless it is a single image.
        process: (which, of how many) that train side by side.
        limit: batches of an epoch at most, or the share of them, as the Trainer's ``limit_train_batches``.

    Attributes:
        step: number of steps that are done, to be set from outside.
        selection: the images of this epoch and those that follow; None for all.
    """

    def __init__(
        self,
        images: int = 0,
        batch_size: int = 1,
        batch_sizes: Mapping[int, int] = {},
        drop_last: bool = False,
        process: tuple[int, int] = (0, 1),
        limit: int | float = 1.0,
    ) -> None:
        self._images, self._batch_size, self._batch_sizes = images, batch_size, batch_sizes
        self._drop_last, self._limit, self.process = drop_last, limit, process
        self.step = 0
        self.selection: Selection | None = None
        self._begun = (0, 0)  # number of an epoch, and the step at which it began

    def now(self) -> Epoch:
        """The epoch that the next step belongs to."""
        number, first = self._begun
        while self.step >= first + self._limited(number):
            number, first = number + 1, first + self._limited(number)
        self._begun = number, first
        left = slice(self.step - first, self._limited(number))
        return Epoch(number, self._count_images(), self._size(number), self._batches(number), left)

    def select(self, selection: Selection | None) -> None:
        """Begin the next epoch at this step, with these images of the split; None for all."""
        self._begun, self.selection = (self._begun[0] + 1, self.step), selection

    def state_dict(self) -> dict[str, Any]:
        """Epoch, the step at which it began and its selection: epochs of different lengths resume exactly."""
        return {"begun": self._begun, "selection": self.selection and tuple(self.selection)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where a checkpoint stood."""
        number, first = state_dict["begun"]
        self._begun = number, first
        self.selection = state_dict["selection"] and Selection(*state_dict["selection"])

    def _count_images(self) -> int:
        return len(self.selection.indices) if self.selection else self._images

    def _size(self, number: int) -> int:
        if self.selection and self.selection.batch_size:
            return self.selection.batch_size
        reached = [first for first in self._batch_sizes if first <= number]
        return self._batch_sizes[max(reached)] if reached else self._batch_size

    def _batches(self, number: int) -> int:
        processes = self.process[1]
        full, rest = divmod(self._count_images(), self._size(number) * processes)
        # BatchNorm has no statistics of a single image: a last batch of one per process is left out in any case.
        smallest = 2 * processes if full else processes
        return full if self._drop_last or rest < smallest else full + 1

    def _limited(self, number: int) -> int:
        batches, limit = self._batches(number), self._limit
        return max(min(batches, limit) if isinstance(limit, int) else int(batches * limit), 1)
