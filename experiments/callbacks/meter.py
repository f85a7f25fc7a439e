"""How fast a run trains, and how much memory its backward passes hold."""

import statistics
import time
from typing import Any

import lightning.pytorch as L
import torch
from typing_extensions import override

from losses.processes import process_count
from models.method import Method, log_epoch
from models.networks.memory.saved_tensors import SavedTensorMeter


class Meter(L.Callback):
    """Measures images/s and peak activation bytes.

    Speed is taken over each epoch, loading included, validation and the first batch left out; that of the run is the
    median over its epochs. Memory is taken in one training step of each epoch, since not all learn the same, and is the
    largest: on a CPU the bytes that autograd holds at once, each storage counted once, parameters left out; on a GPU
    ``torch.cuda.max_memory_allocated`` above what was allocated before the step. Of blocks that learn one after the
    other, ``train/block<k>/seconds`` is the time that the epochs of block k took.

    Attributes:
        seconds: time spent in ``fit`` so far, resumed runs added up.
        peak_activation_bytes: None until measured.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.peak_activation_bytes: int | None = None
        self._rates: list[float] = []
        self._block_began = 0.0  # of the seconds; for blocks that learn one after the other
        self._saved: SavedTensorMeter | None = None
        self._full, self._measures = 0, False  # images of a whole batch; whether this step is measured
        self._start: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Median over the epochs; None before the first is complete."""
        return statistics.median(self._rates) if self._rates else None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._tick = time.perf_counter()
        self._images, self._start = 0, None  # one that goes on within an epoch does not begin it

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._images, self._start = 0, None

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin to count bytes, in an epoch's first step; of the run's, which makes buffers, too, in its second."""
        self._full = self._full or len(batch.labels)
        whole = len(batch.labels) == self._full  # the last of an epoch may be smaller
        first = self.peak_activation_bytes is None
        self._measures = trainer.global_step > 0 and (batch_idx == 0 or (first and whole))
        if not self._measures:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
            self._allocated = torch.cuda.memory_allocated(pl_module.device)
        else:
            self._saved = SavedTensorMeter([*pl_module.parameters(), *pl_module.buffers()]).__enter__()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images; end the count of bytes."""
        if self._measures:
            self._read_memory(pl_module)
        if self._start is None:
            _wait(pl_module)
            self._start = self._stop = time.perf_counter()
        else:
            self._images += len(batch.labels)
            if trainer.is_last_batch:
                _wait(pl_module)
            self._stop = time.perf_counter()

    def _read_memory(self, pl_module: L.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(pl_module.device) - self._allocated
        else:
            assert self._saved is not None
            self._saved.__exit__(None, None, None)
            peak, self._saved = self._saved.peak, None
        self.peak_activation_bytes = max(peak, self.peak_activation_bytes or 0)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Method) -> None:
        now = time.perf_counter()
        self.seconds, self._tick = self.seconds + now - self._tick, now
        metrics = {}
        epoch, epochs = pl_module.schedule.turn(trainer.current_epoch)
        if pl_module.schedule.lengths and epoch + 1 == epochs:
            name = pl_module.part_names[pl_module.schedule.learners(trainer.current_epoch).start]
            metrics[f"train/{name}/seconds"] = self.seconds - self._block_began
            self._block_began = self.seconds
        if self._start is not None and self._images:
            # All processes together: those that share a batch have as many images each.
            self._rates.append(process_count() * self._images / (self._stop - self._start))
            metrics["train/images_per_second"] = self._rates[-1]
        log_epoch(pl_module, metrics)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take the hooks away if a step broke off."""
        if self._saved is not None:
            self._saved.__exit__(None, None, None)

    @override
    def state_dict(self) -> dict[str, Any]:
        """So that a resumed run reports the whole run."""
        memory = {"peak_activation_bytes": self.peak_activation_bytes}
        return {"seconds": self.seconds, "rates": self._rates, "block_began": self._block_began, **memory}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self._rates = state_dict["seconds"], list(state_dict["rates"])
        self._block_began = state_dict.get("block_began", self.seconds)
        self.peak_activation_bytes = state_dict["peak_activation_bytes"]


def _wait(pl_module: L.LightningModule) -> None:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)
