"""``last.ckpt`` and ``best.ckpt``, every epoch."""

import os
from pathlib import Path

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from experiments.run_folder import BEST, LAST, PREVIOUS


class LastCheckpoint(Checkpoint):
    """Writes ``checkpoints/last.ckpt`` after every epoch and keeps the one before as ``previous.ckpt``.

    Lightning writes to a temporary file and renames it, so that a run killed at any moment leaves a
    whole ``last.ckpt``.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._last, self._previous = folder / LAST, folder / PREVIOUS

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
        """Say how to go on after Ctrl-C or a termination signal."""
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
