"""What the terminal shows of a run: the cut, then a progress bar with one accuracy per block."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import TQDMProgressBar

from experiments.measure.cost import show_cost
from models.local_learning import LocalLearning


class CutTable(L.Callback):
    """Prints the cost of every block before training begins; of a method without backward passes nothing."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print; the data are there by now, or their fault was told already."""
        if trainer.is_global_zero and isinstance(pl_module, LocalLearning):
            show_cost(pl_module, trainer.datamodule.batch_size, "published", json=False, processes=trainer.world_size)


class BlockProgressBar(TQDMProgressBar):
    """Shows ``val top-1 % 81 90 95``: each block's accuracy on the validation images, in order, the final head's last.

    ``train top-1 %`` is that of the last logged batch, ``probe top-1 %`` that of the online probes on the
    validation images.
    """

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Items at the right of the bar."""
        return _accuracies(trainer, pl_module, ("train", "val", "probe"))


class EpochLines(L.Callback):
    """Validation accuracies, one line per epoch, where no bar can be drawn."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print; validation is over by now."""
        if trainer.is_global_zero:
            shown = _accuracies(trainer, pl_module, ("val", "probe")) or {"val top-1 %": "not validated"}
            figures = ", ".join(f"{name} {values}" for name, values in shown.items())
            print(f"epoch {trainer.current_epoch + 1}, {figures}", flush=True)


_NAMES = {"train": "train/{}/top1", "val": "val/{}/top1", "probe": "probe_online/{}/gap/top1"}


def _accuracies(trainer: L.Trainer, pl_module: L.LightningModule, kinds: Sequence[str]) -> dict[str, str]:
    """Each block's accuracy in %; of many blocks every other one, until at most eight remain, the last always."""
    figures = pl_module.latest | trainer.callback_metrics
    items = {}
    for kind in kinds:
        name = _NAMES[kind]
        found = [block for block in pl_module.part_names if name.format(block) in figures]
        while len(found) > 8:
            found = found[-1::-2][::-1]
        if found:
            items[f"{kind} top-1 %"] = " ".join(f"{100 * figures[name.format(block)]:.1f}" for block in found)
    return items
