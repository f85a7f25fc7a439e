"""The test split is read before a training that ends with it."""

import lightning.pytorch as L

from experiments.callbacks.fit_trainer import FitTrainer


class ReadTestSplit(L.Callback):
    """Reads the test split before training: a file that is missing is told now, not when the training is done."""

    def setup(self, trainer: FitTrainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read it, for it to be there at the end."""
        if stage == "fit":
            trainer.datamodule.setup("test")
