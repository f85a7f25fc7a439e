"""BatchNorm statistics of a network that was trained with noise, as they are without it."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.probing.features import evaluating
from experiments.run.errors import RunError
from losses.processes import process_count
from models.method import Method


@torch.no_grad()
def reestimate(model: Method, batches: Iterable[Tensor], last: int | None = None) -> None:
    """Replace all running means and variances by their averages over batches of images ``(B, C, H, W)``.

    Own, because torch's ``update_bn`` puts the whole model into training mode, where dropout is noise too.

    Args:
        model: whose BatchNorm layers change; those that no image reaches on the way to the blocks' features forget
            theirs.
        batches: normalised, un-augmented; of several processes each has its own, and all get the average over all.
        last: number of the last block that images go through, from 1; by default all K.

    Raises:
        RunError: the network has no BatchNorm.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers:
        raise RunError(f"{model.network_name} has no BatchNorm whose statistics could be re-estimated.")
    with evaluating(model):
        for layer in layers:
            layer.train().reset_running_stats()
            layer.momentum = None  # every batch counts the same
        for images in batches:
            model.block_features(images, last)
    if process_count() > 1:
        for layer in layers:
            _average(layer)


def _average(layer: _BatchNorm) -> None:
    """Average over the batches of all processes."""
    statistics = dict(layer.named_buffers())
    batches = statistics.pop("num_batches_tracked")
    own = batches.clone()
    dist.all_reduce(batches)
    for average in statistics.values() if batches else ():
        average *= own
        dist.all_reduce(average)
        average /= batches
