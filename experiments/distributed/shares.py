"""Which process trains which blocks: by the time that each takes."""

from copy import deepcopy
from math import fsum

import torch

from experiments.measure.workbench import Workbench
from models.local_learning import LocalLearning
from models.networks.cut import balanced_stops

_STEPS = 3


def part_seconds(model: LocalLearning) -> list[float]:
    """Seconds of a step that each part takes on this device, on random images; the model stays as it is.

    Parts that do not learn in the first epoch are counted with the next one that does; of parts that learn one after
    the other each counts the same.
    """
    if model.schedule.lengths:
        return [1.0] * model.schedule.parts
    trainer, device = model.trainer, model.trainer.strategy.root_device
    before, mode = deepcopy(model.state_dict()), model.training
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        data = trainer.datamodule  # type: ignore[attr-defined]  # a connector of Lightning's sets it
        seconds = Workbench(data, trainer, _STEPS, warm_up=1).part_seconds(model)
    model.load_state_dict(before)
    model.train(mode)
    return seconds


def cheapest_cut(seconds: list[float], processes: int) -> list[int]:
    """First part of each process, so that the slowest of them is fastest."""
    stops = balanced_stops(len(seconds), processes, lambda a, b: fsum(seconds[a:b]))
    return [0, *stops[:-1]]
