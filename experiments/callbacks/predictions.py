"""``predictions.csv``: what ``predict`` writes."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from typing_extensions import override

from experiments.run.errors import RunError


class PredictionsFile(BasePredictionWriter):
    """Writes one line per test image: its place in the test split, the predicted class, its probability.

    Raises:
        RunError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(write_interval="epoch")
        self._path = path

    @override
    def write_on_epoch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        if not trainer.is_global_zero:  # every process predicts all images
            return
        probability, label = torch.cat(list(predictions)).max(dim=1)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["index", "class", "probability"])
                writer.writerows(zip(range(len(label)), label.tolist(), probability.tolist(), strict=True))
        except OSError as fault:
            raise RunError(f"{self._path} cannot be written ({fault.strerror}).") from fault
        print(f"\n{len(label)} predictions written to {self._path}")
