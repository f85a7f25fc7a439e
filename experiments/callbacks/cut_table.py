"""The cut, shown before training begins."""

import lightning.pytorch as L
from typing_extensions import override

from experiments.callbacks.fit_trainer import FitTrainer
from experiments.measure.cost import replicas, show_cost
from models.local_learning import LocalLearning


class CutTable(L.Callback):
    """Prints the cost of every block before training begins; of a method without backward passes nothing."""

    @override
    def on_fit_start(self, trainer: FitTrainer, pl_module: L.LightningModule) -> None:
        """Print; the data are there by now, or their fault was told already."""
        if trainer.is_global_zero and isinstance(pl_module, LocalLearning):
            show_cost(pl_module, trainer.datamodule.batch_size, "published", json=False, processes=replicas(trainer))
