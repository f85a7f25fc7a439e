"""A picture of what every block decides where, for points in the plane."""

from pathlib import Path

import lightning.pytorch as L
import matplotlib
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from experiments.probing.decision_regions import draw_regions
from experiments.run.errors import RunError
from experiments.run.files import REGIONS
from models.method import Method


class DecisionBoundary(L.Callback):
    """Draws the decision regions of every block that predicts, and the training points, when training ends.

    Into TensorBoard (``decision_regions``) and ``decision_regions.png`` of the run folder.

    Raises:
        RunError: the data are no points in the plane, or the method predicts no classes.
    """

    def setup(self, trainer: L.Trainer, pl_module: Method, stage: str) -> None:
        """See that there is something to draw."""
        if tuple(pl_module.image_shape) != (2, 1, 1):
            raise RunError(
                f"Decision regions are drawn in the plane, and {trainer.datamodule.name} has no points of 2 "
                "coordinates: take the callback DecisionBoundary out."
            )
        if not pl_module.predicts_classes:
            raise RunError(f"{type(pl_module).__name__} decides nothing: take the callback DecisionBoundary out.")

    @torch.no_grad()
    def on_train_end(self, trainer: L.Trainer, pl_module: Method) -> None:
        """Draw."""
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        data, pl_module = trainer.datamodule, pl_module.eval()
        split = data.training_images
        train = split.__getitems__(torch.arange(len(split)))
        points = data.normalised(train.images).flatten(1)

        def logits(plane: Tensor) -> dict[str, Tensor]:
            return pl_module.block_logits(plane.to(pl_module.device)[:, :, None, None])

        names = list(logits(points[:1]))
        figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3.9), squeeze=False, layout="constrained")
        for name, place in zip(names, axes[0], strict=True):
            draw_regions(place, lambda plane, name=name: logits(plane)[name], points, train.labels)
            top1 = (logits(points)[name].argmax(dim=1).cpu() == train.labels).float().mean()
            place.set_title(f"{name}: {100 * top1:.1f} % of training points", fontsize=10)
        figure.suptitle(f"{type(pl_module).__name__}, {pl_module.network_name}, {data.name}")
        figure.savefig(Path(trainer.default_root_dir) / REGIONS, dpi=120)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("decision_regions", figure, trainer.global_step)
        plt.close(figure)
