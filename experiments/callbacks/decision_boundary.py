"""A picture of what every block decides where, for points in the plane."""

from functools import partial
from pathlib import Path

import lightning.pytorch as L
import torch
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.loaders import in_order
from experiments.callbacks.fit_trainer import FitTrainer
from experiments.callbacks.tensorboard import tensorboard_page
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

    @override
    def setup(self, trainer: FitTrainer, pl_module: Method, stage: str) -> None:
        if tuple(pl_module.image_shape) != (2, 1, 1):
            raise RunError(
                f"Decision regions are drawn in the plane, and {trainer.datamodule.name} has no points of 2 "
                "coordinates: take the callback DecisionBoundary out."
            )
        if not pl_module.predicts_classes:
            raise RunError(f"{type(pl_module).__name__} decides nothing: take the callback DecisionBoundary out.")

    @override
    def on_train_end(self, trainer: FitTrainer, pl_module: Method) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        figure = _draw(pl_module.eval(), trainer.datamodule)
        figure.savefig(Path(trainer.default_root_dir) / REGIONS, dpi=120)
        if page := tensorboard_page(trainer):
            page.add_figure("decision_regions", figure, trainer.global_step)


@torch.no_grad()
def _draw(model: Method, data: ImageDataModule) -> Figure:
    """One panel per block that predicts."""
    split = data.training_images
    [train] = in_order(split, batch_size=len(split))
    points = data.normalised(train.images).flatten(1)  # (N, 2)

    def classify(name: str, plane: Tensor) -> Tensor:
        return model.block_logits(plane.to(model.device)[:, :, None, None])[name]

    logits = model.block_logits(points.to(model.device)[:, :, None, None])
    figure = Figure(figsize=(3.6 * len(logits), 3.9), layout="constrained")
    axes = figure.subplots(1, len(logits), squeeze=False)[0]
    for (name, z), place in zip(logits.items(), axes, strict=True):
        draw_regions(place, partial(classify, name), points, train.labels)
        share = (z.argmax(dim=1).cpu() == train.labels).float().mean()
        place.set_title(f"{name}: {100 * share:.1f} % of training points", fontsize=10)
    figure.suptitle(f"{type(model).__name__}, {model.network_name}, {data.name}")
    return figure
