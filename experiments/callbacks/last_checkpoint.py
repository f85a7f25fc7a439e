"""``last.ckpt``, of every epoch."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from experiments.run.files import LAST, PREVIOUS
from experiments.run.folder import PART_OF_SUITE
from experiments.run.written import in_one_move


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` after every epoch and keeps the one before as ``previous.ckpt``.

    It is the last thing that an epoch writes: whenever a run is killed, what a resume does again is what had been
    written since, and what it does not do again is there. So this is the last of the callbacks, and figures of an
    epoch are logged by :func:`~models.method.log_epoch`.

    Args:
        folder: the run folder.
        reached: metrics of the run that goes on. Checkpoints hold all that a run has reached so far, as its summary
            will: some metrics, of blocks that have finished, are not computed again.
    """

    def __init__(self, folder: Path, reached: Mapping[str, float] | None = None) -> None:
        self._last, self._previous = folder / LAST, folder / PREVIOUS
        self._reached = dict(reached or {})

    def reached(self, trainer: L.Trainer) -> dict[str, float]:
        """The latest value of every metric of the whole run."""
        return self._reached | {name: float(value) for name, value in trainer.callback_metrics.items()}

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["metrics"] = self.reached(trainer)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save; Lightning calls this after validation and after the schedules were stepped."""
        for logger in trainer.loggers:
            logger.save()  # what they keep in memory
        if trainer.is_global_zero and self._last.exists():
            with in_one_move(self._previous) as part:
                part.unlink(missing_ok=True)  # of a run that was killed
                _give_second_name(self._last, part)  # at no moment is there no last.ckpt
        trainer.save_checkpoint(self._last, weights_only=False)  # optimizers and counters too

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say how to go on after Ctrl-C or a termination signal, unless a suite does."""
        if PART_OF_SUITE in os.environ:
            return
        if isinstance(exception, (KeyboardInterrupt, SIGTERMException)) and trainer.is_global_zero:
            if self._last.exists():
                print(
                    f"\nStopped. Go on with the same command and --name {self._last.parents[1].name} --ckpt_path last"
                )
            else:
                print("\nStopped before the end of the first epoch: there is no checkpoint yet.")


def _give_second_name(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:  # a file system without second names
        shutil.copyfile(file, name)
