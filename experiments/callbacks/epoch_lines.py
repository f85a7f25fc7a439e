"""A line per epoch, for a pipe or a file."""

import lightning.pytorch as L
from typing_extensions import override

from experiments.callbacks.progress_bar import accuracies
from models.method import Method


class EpochLines(L.Callback):
    """Validation accuracies, one line per epoch, where no bar can be drawn."""

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Method) -> None:
        """Print; validation is over by now."""
        if trainer.is_global_zero:
            metrics = pl_module.latest | trainer.callback_metrics
            shown = accuracies(metrics, pl_module, ("val", "probe")) or {"val top-1 %": "not validated"}
            line = ", ".join(f"{kind} {values}" for kind, values in shown.items())
            print(f"epoch {trainer.current_epoch + 1}, {line}", flush=True)
