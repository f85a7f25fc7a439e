"""Hidden layers watched while they learn."""

import lightning.pytorch as L
from lightning.pytorch.utilities.seed import isolate_rng
from torchvision.io import decode_image
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from datamodules.loaders import in_order
from experiments.callbacks.fit_trainer import FitTrainer
from experiments.callbacks.tensorboard import tensorboard_page
from experiments.probing.features import Compute, Features, draw, evaluating, images_of, read
from experiments.probing.hidden_layers import Every, LayerMetrics, flat, layer_metrics, layers_of, reader, redundancy
from experiments.probing.observe_pictures import draw_over_time
from experiments.run.loggers import RunCSVLogger
from losses.errors import UsageError
from models.classification import LocalClassification
from models.local_learning import LocalLearning
from models.method import log_epoch
from ranges import PositiveInt


class HiddenLayers(L.Callback):
    """Logs after epochs what the hidden layers are worth, on training and validation images as they are.

    Per layer, under ``observe/block<k>/<unit>/``: ``ncm_train``, ``ncm_val``, ``ncm_gap`` (accuracy of the nearest
    class mean, whose means are the training images'), ``fuzziness_…`` (separation fuzziness D), ``rank_…`` (effective
    rank); per block whose head classifies, under ``observe/block<k>/``: ``confident_train`` and ``small_loss_train``,
    the shares of redundant training images (heads that layer-wise training drops: while they learn). At the end
    ``observations_over_time.png`` is drawn into the run folder. What is learned is bit for bit what it is without the
    callback; the images/s leave it out.

    Args:
        every_n_epochs: observe after every n-th epoch.
        images: at most so many of each split, drawn once with the data's seed; they are kept in memory.
        every: observe the output of every unit of the network, or of every block.

    Raises:
        UsageError: the network is no chain of units.
    """

    def __init__(self, every_n_epochs: PositiveInt = 1, images: PositiveInt = 1000, every: Every = "unit") -> None:
        self.every_n_epochs, self.count, self.every = every_n_epochs, images, every
        self._images: dict[str, list[Batch]] = {}

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, LocalLearning):
            raise UsageError(
                f"HiddenLayers reads the units of a network, and {type(pl_module).__name__} has none: leave it out."
            )
        self._images = {}  # not those of an earlier run

    @override
    def on_train_epoch_end(self, trainer: FitTrainer, pl_module: LocalLearning) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        with isolate_rng(), evaluating(pl_module):
            metrics = self._observe(pl_module, trainer.datamodule)
        log_epoch(pl_module, flat(metrics))

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: LocalLearning) -> None:
        places = dict.fromkeys([*layers_of(pl_module, self.every), *pl_module.part_names])
        for logger in trainer.loggers:
            if isinstance(logger, RunCSVLogger) and trainer.is_global_zero:
                picture = draw_over_time(logger.file.parent, list(places))
                if picture and (page := tensorboard_page(trainer)):
                    page.add_image("observe/over_time", decode_image(str(picture), "RGB"), trainer.global_step)

    def _observe(self, model: LocalLearning, data: ImageDataModule) -> LayerMetrics:
        if not self._images:
            splits = {"train": data.training_images.for_evaluation(), "val": images_of(data.val_dataloader())}
            drawn = {name: draw(split, self.count, data.seed) for name, split in splits.items()}
            self._images = {name: list(in_order(split, data.batch_size)) for name, split in drawn.items()}
        compute = reader(layers_of(model, self.every))
        train, val = (self._read(split, model, data, compute) for split in ("train", "val"))
        metrics = layer_metrics(train, val, "val")
        if isinstance(model, LocalClassification):
            logits = self._read("train", model, data, model.block_logits)
            for head, found in redundancy(logits, model.sample_losses).items():
                metrics.setdefault(head, {}).update(found)
        return metrics

    def _read(self, split: str, model: LocalLearning, data: ImageDataModule, compute: Compute) -> Features:
        batches = self._images[split]
        return read(batches, sum(len(batch.labels) for batch in batches), data, model.device, compute)
