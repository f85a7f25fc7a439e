"""Which process trains which blocks: by the time that each takes."""

from math import fsum

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from experiments.measure.turns import now
from experiments.measure.workbench import RandomImages
from models.local_learning import LocalLearning
from models.networks.cut import balanced_stops

_WARM_UP, _STEPS = 1, 3


def part_seconds(model: LocalLearning) -> list[float]:
    """Seconds of a step that each part takes on this device, forward and backward, on random images.

    Parts that do not learn in the first epoch are counted with the next one that does; of parts that learn one after
    the other each counts the same. The model stays as it is.
    """
    parts = model.schedule.parts
    if model.schedule.lengths:
        return [1.0] * parts
    trainer, device = model.trainer, model.trainer.strategy.root_device
    data = RandomImages(trainer.datamodule, batches=1)  # type: ignore[attr-defined]  # set outside of its class
    seconds, last = [0.0] * parts, 0.0

    def backward_only(k: int, loss: Tensor) -> None:
        nonlocal last
        loss.backward()
        moment = now(device)
        seconds[k] += moment - last
        last = moment

    buffers, mode = [buffer.clone() for buffer in model.buffers()], model.training
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        trainer.precision_plugin.train_step_context(),
    ):
        batch = next(iter(data.train_dataloader()))
        batch = data.on_after_batch_transfer(move_data_to_device(batch, device), 0)
        model.train().update_block = backward_only  # type: ignore[method-assign]  # for these steps
        for step in range(_WARM_UP + _STEPS):
            if step == _WARM_UP:
                seconds[:] = [0.0] * parts
            last = now(device)
            model.training_step(batch, 0)
    del model.update_block
    model.train(mode).zero_grad()
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    return [total / _STEPS for total in seconds]


def cheapest_cut(seconds: list[float], processes: int) -> list[int]:
    """First part of each process, so that the slowest of them is fastest."""
    stops = balanced_stops(len(seconds), processes, lambda a, b: fsum(seconds[a:b]))
    return [0, *stops[:-1]]
