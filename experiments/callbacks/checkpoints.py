"""``last.ckpt`` and ``best.ckpt``, every epoch."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from experiments.run.files import BEST, LAST, PREVIOUS
from experiments.run.folder import PART_OF_SUITE


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` after every epoch and keeps the one before as ``previous.ckpt``.

    Lightning writes to a temporary file and renames it, so that a run killed at any moment leaves a
    whole ``last.ckpt``.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._last, self._previous = folder / LAST, folder / PREVIOUS
        self._told_to_stop = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Of several processes, have a termination signal wait for the end of a batch.

        Lightning 2.6 broadcasts within its signal handler, while other exchanges are under way, and hangs.
        """
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: Any) -> None:
        self._told_to_stop = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Stop, and the other processes with it: they may wait for this one already."""
        if self._told_to_stop and trainer.is_global_zero:
            trainer.strategy.launcher.kill(signal.SIGKILL)
            raise SIGTERMException

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save; Lightning calls this after validation and after the schedules were stepped."""
        if trainer.is_global_zero and self._last.exists():
            # A second name for the old file: at no moment is there no last.ckpt.
            spare = self._previous.with_suffix(".link")
            spare.unlink(missing_ok=True)
            os.link(self._last, spare)
            spare.replace(self._previous)
        trainer.save_checkpoint(self._last, weights_only=False)  # optimizers and counters too

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


class BestCheckpoint(ModelCheckpoint):
    """Writes ``checkpoints/best.ckpt`` whenever the monitored figure reaches a new best.

    Args:
        folder: the run folder.
        monitor: logged figure, larger is better.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        path = folder / BEST
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            monitor=monitor,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, if there is a figure to judge by: the last of blocks that learn one by one has none before its turn."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)
