"""What a person sees in TensorBoard besides the logged metrics."""

from typing import TYPE_CHECKING, Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torchvision.utils import make_grid
from typing_extensions import override

from datamodules.base import ImageDataModule
from experiments.callbacks.fit_trainer import FitTrainer
from experiments.measure.cost import markdown_table
from models.local_learning import LocalLearning

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


_EVERY = ("train/{}/loss", "train/{}/grad_norm", "train/{}/lr")
_WITH_LABELS = ("val/{}/top1", "train/{}/top1", *_EVERY)
"""Metrics that have a chart with all blocks in it."""


class TensorBoardPage(L.Callback):
    """Adds a grid of augmented training images; of methods with backward passes also the cut as text, and charts.

    A chart draws one metric of all blocks.
    """

    @override
    def on_train_start(self, trainer: FitTrainer, pl_module: L.LightningModule) -> None:
        """The cut as a table, and the charts (tab "Custom scalars")."""
        page = tensorboard_page(trainer)
        if page and isinstance(pl_module, LocalLearning):
            page.add_text("cut", markdown_table(pl_module, trainer.datamodule.batch_size), trainer.global_step)
            probe = f"probe_online/{{}}/{pl_module.judged_features}/top1"
            metrics = [*(_WITH_LABELS if pl_module.predicts_classes else (probe, *_EVERY))]
            metrics += [f"train/{{}}/{name}" for name in pl_module.charts]
            lines = {name.replace("/{}", "").replace("*", "…"): _pattern(name) for name in metrics}
            page.add_custom_scalars({"All blocks": {title: ["Multiline", [line]] for title, line in lines.items()}})

    @override
    def on_train_batch_start(
        self, trainer: FitTrainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The first training batch as the network sees it, colours as in the file; both views of each image in turn."""
        data = trainer.datamodule
        pictures = data.image_shape[0] in (1, 3)  # grey or RGB; not the coordinates of toy tasks
        if trainer.global_step == 0 and pictures and (page := tensorboard_page(trainer)):
            for strength, *pair in batch.views:
                name = "train/views" if strength == 1 else f"train/views_of_strength_{strength:g}"
                page.add_image(name, _grid(torch.stack(pair, dim=1).flatten(0, 1)[:64], data), trainer.global_step)
            if not batch.views:
                page.add_image("train/augmented_batch", _grid(batch.images[:64], data), trainer.global_step)


def _pattern(metric: str) -> str:
    """The names of a metric of all blocks, as a regular expression."""
    return metric.replace(".", r"\.").replace("*", "[^/]*").format(r"(block\d+|final)")


def _grid(images: torch.Tensor, data: ImageDataModule) -> torch.Tensor:
    """Normalised images ``(B, C, H, W)`` as one picture, eight a row."""
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (data.mean, data.std))
    images = (images.float() * std + mean).clamp(0, 1)
    scale = max(1, 64 // images.shape[-1])  # TensorBoard shows pixels as they are: enlarge small images
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return make_grid(images, nrow=8, padding=4, pad_value=0.5)


def tensorboard_page(trainer: L.Trainer) -> "SummaryWriter | None":
    """The open TensorBoard file, on the process that writes it."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None
