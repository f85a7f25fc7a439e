"""What the terminal shows of a run: the cut, then a progress bar with one accuracy per block."""

from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import TQDMProgressBar

from experiments.cost import show_cost


class CutTable(L.Callback):
    """Prints the cost of every block before training begins."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print; the data are there by now, or their fault was told already."""
        if trainer.is_global_zero:
            show_cost(pl_module, trainer.datamodule.batch_size, "published", json=False)


class BlockProgressBar(TQDMProgressBar):
    """Shows ``val top-1 % 81 90 95``: each block's accuracy on the validation images, in order, the final head's last.

    ``train top-1 %`` is that of the last logged batch.
    """

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Items at the right of the bar."""
        return _accuracies(trainer, pl_module)


class EpochLines(L.Callback):
    """Validation accuracies, one line per epoch, where no bar can be drawn."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print; validation is over by now."""
        if trainer.is_global_zero:
            shown = _accuracies(trainer, pl_module).get("val top-1 %", "not validated")
            print(f"epoch {trainer.current_epoch + 1}, val top-1 % {shown}", flush=True)


def _accuracies(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, str]:
    """Each block's accuracy in %; of many blocks every other one, until at most eight remain, the last always."""
    figures = pl_module.latest | trainer.callback_metrics
    items = {}
    for split in ("train", "val"):
        name = f"{split}/{{}}/top1"
        found = [block for block in pl_module.block_names if name.format(block) in figures]
        while len(found) > 8:
            found = found[-1::-2][::-1]
        if found:
            items[f"{split} top-1 %"] = " ".join(f"{100 * figures[name.format(block)]:.1f}" for block in found)
    return items
