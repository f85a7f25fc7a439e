"""Logs what the communication hook of a run sends."""

from typing import Any

import lightning.pytorch as L

from experiments.distributed.hooks import CommunicationHook
from models.local_learning import LocalLearning


class CommunicationLog(L.Callback):
    """Logs ``train/communication/…`` in logged steps, and means over the run as ``communication/…`` every epoch.

    Figures are of the first process. The command line adds this callback to runs with a hook.

    Args:
        hook: the hook.
    """

    def __init__(self, hook: CommunicationHook) -> None:
        self.hook = hook

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: LocalLearning, batch: Any, batch_idx: int) -> None:
        """Tell the hook where the run stands."""
        self.hook.calibrating = trainer.current_epoch == 0
        self.hook.measuring = (trainer.global_step + 1) % max(trainer.log_every_n_steps, 1) == 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: LocalLearning, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step's figures."""
        if self.hook.measuring:
            figures = {f"train/communication/{name}": value for name, value in self.hook.figures.items()}
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step - 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: LocalLearning) -> None:
        """Log the means over the run so far, which its summary takes."""
        pl_module.log_dict({f"communication/{name}": value for name, value in self.hook.summary().items()})
