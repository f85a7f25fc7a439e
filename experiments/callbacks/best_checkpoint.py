"""``best.ckpt``, of the best epoch."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from experiments.run.files import BEST


class BestCheckpoint(ModelCheckpoint):
    """Writes the run folder's ``checkpoints/best.ckpt`` whenever the monitored metric, larger is better, is best."""

    def __init__(self, folder: Path, monitor: str) -> None:
        self._file = path = folder / BEST
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            monitor=monitor,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=True,
        )

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, if there is a metric to judge by: the last of blocks that learn one by one has none before its turn."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best so far, if it is in the run folder: that may have been moved, which Lightning forgets by.

        In a run that goes on elsewhere, from another's checkpoint, the first is the best.
        """
        if self._file.exists() and state_dict["best_model_score"] is not None:
            best = str(self._file)
            here = {"best_model_path": best, "kth_best_model_path": best, "dirpath": self.dirpath}
            super().load_state_dict(state_dict | here | {"best_k_models": {best: state_dict["best_model_score"]}})
