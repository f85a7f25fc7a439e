"""``last.ckpt``, of every epoch."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from experiments.run.files import LAST, PREVIOUS
from experiments.run.folder import PART_OF_SUITE


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` after every epoch and keeps the one before as ``previous.ckpt``.

    Lightning writes to a temporary file and renames it, so that a run killed at any moment leaves a
    whole ``last.ckpt``.
    """

    def __init__(self, folder: Path) -> None:
        self._last, self._previous = folder / LAST, folder / PREVIOUS
        self._told_to_stop = False

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Of several processes, have a termination signal wait for the end of a batch.

        Lightning 2.6 broadcasts within its signal handler, while other exchanges are under way, and hangs.
        """
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        self._told_to_stop = True

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        """Stop, and the other processes with it: they may wait for this one already."""
        if self._told_to_stop and trainer.is_global_zero:
            if launcher := trainer.strategy.launcher:  # none if somebody else started the processes
                launcher.kill(signal.SIGKILL)
            raise SIGTERMException

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save; Lightning calls this after validation and after the schedules were stepped."""
        if trainer.is_global_zero and self._last.exists():
            # A second name for the old file: at no moment is there no last.ckpt.
            spare = self._previous.with_suffix(".link")
            spare.unlink(missing_ok=True)
            os.link(self._last, spare)
            spare.replace(self._previous)
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
