"""``predictions.csv``: what ``predict`` writes."""

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from typing_extensions import override

from datamodules.base import ImageDataModule
from experiments.run.errors import RunError


class PredictionsFile(L.Callback):
    """Writes a line per image: what is known of it, the name of the class that is predicted, the probability.

    Own code, as Lightning's writers of predictions want to be told the batches' indices by its own samplers.

    Raises:
        RunError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._best: list[tuple[Tensor, Tensor]] = []

    @override
    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any, **__: Any
    ) -> None:
        """Keep the largest probability of each image, and whose it is."""
        probability, label = outputs.max(dim=1)
        self._best.append((probability.cpu(), label.cpu()))

    @override
    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        if not trainer.is_global_zero:  # every process predicts all images
            return
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]  # set outside of its class
        probability, label = (torch.cat(parts).tolist() for parts in zip(*self._best, strict=True))
        known = data.predicted
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                writer = csv.writer(file)
                writer.writerow([*known, "class", "probability"])
                classes, probabilities = (data.classes[k] for k in label), (f"{p:.6g}" for p in probability)
                writer.writerows(zip(*known.values(), classes, probabilities, strict=False))
        except OSError as fault:
            raise RunError(f"{self._path} cannot be written ({fault.strerror}).") from fault
        print(f"\n{len(label)} predictions written to {self._path}")
