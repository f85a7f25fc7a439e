"""Logs what the communication hook of a run sends."""

from typing import Any

import lightning.pytorch as L
from typing_extensions import override

from experiments.callbacks.fit_trainer import FitTrainer
from experiments.distributed.hooks import CommunicationHook


class CommunicationLog(L.Callback):
    """Logs ``train/communication/…`` in logged steps, and means over the run as ``communication/…`` every epoch.

    Metrics are of the first process. The command line adds this callback to runs with a hook.
    """

    def __init__(self, hook: CommunicationHook) -> None:
        self.hook = hook

    @override
    def on_train_batch_start(self, trainer: FitTrainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Tell the hook where the run stands."""
        self.hook.calibrating = trainer.current_epoch == 0
        self.hook.measuring = (trainer.global_step + 1) % max(trainer.log_every_n_steps, 1) == 0

    @override
    def on_train_batch_end(self, trainer: FitTrainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.hook.measuring:
            metrics = {f"train/communication/{name}": value for name, value in self.hook.metrics.items()}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step - 1)

    @override
    def on_train_epoch_end(self, trainer: FitTrainer, pl_module: L.LightningModule) -> None:
        """Log the means over the run so far, which its summary takes."""
        pl_module.log_dict({f"communication/{name}": value for name, value in self.hook.summary().items()})
