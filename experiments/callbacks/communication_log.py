"""Logs what the communication hook of a run sends."""

from typing import Any

import lightning.pytorch as L
from typing_extensions import override

from experiments.callbacks.fit_trainer import FitTrainer
from experiments.distributed.hooks import CommunicationHook
from models.method import log_epoch


class CommunicationLog(L.Callback):
    """Logs ``train/communication/…`` in logged steps, and two kinds of means after every epoch.

    ``communication/…`` are means over the run so far, ``communication/epoch/…`` over this epoch: bits per parameter and
    megabytes. Where weights travel, what is logged in steps is the next exchange. Metrics are of the first process. The
    command line adds this callback to runs with a hook.
    """

    def __init__(self, hook: CommunicationHook) -> None:
        self.hook = hook
        self._before = (0, 0)  # exchanges and bytes of the epochs before

    @override
    def on_train_batch_start(self, trainer: FitTrainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Tell the hook where the run stands."""
        self.hook.calibrating = trainer.current_epoch == 0
        self.hook.measuring |= (trainer.global_step + 1) % max(trainer.log_every_n_steps, 1) == 0
        self.hook.metrics = {}

    @override
    def on_train_batch_end(self, trainer: FitTrainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.hook.measuring and self.hook.metrics:
            self.hook.measuring = False
            metrics = {f"train/communication/{name}": value for name, value in self.hook.metrics.items()}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step - 1)

    @override
    def on_train_epoch_end(self, trainer: FitTrainer, pl_module: L.LightningModule) -> None:
        """Log the means over the run so far, which its summary takes, and those of the epoch."""
        steps, sent = self.hook.steps - self._before[0], self.hook.total_bytes - self._before[1]
        self._before = self.hook.steps, self.hook.total_bytes
        metrics = self.hook.summary() | {"epoch/megabytes": sent / 1e6}
        if steps:  # none in a short last epoch in which weights were to travel later
            metrics["epoch/bits_per_parameter"] = self.hook.traffic(sent, steps)["bits_per_parameter"]
        log_epoch(pl_module, {f"communication/{name}": value for name, value in metrics.items()})

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"before": self._before}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["before"]
