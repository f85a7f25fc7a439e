"""What is tried before training: a step of the optimizer and of its schedule."""

from collections.abc import Callable

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from losses.errors import UsageError

SchedulerCallable = Callable[[Optimizer], LRScheduler]
"""Optimizer → learning-rate schedule."""


def rehearse(make_optimizer: OptimizerCallable, make_scheduler: SchedulerCallable | None, device: torch.device) -> None:
    """Step an optimizer and its schedule once, as training does, on a weight of its own on the device.

    Raises:
        UsageError: a setting is refused or fails, or more is needed than the loop gives: a loss (``LBFGS``), sparse
            gradients (``SparseAdam``), a metric (``ReduceLROnPlateau``).
    """
    weight = nn.Parameter(torch.zeros(1, 1, device=device))
    weight.grad = torch.zeros_like(weight)
    try:
        optimizer = make_optimizer([weight])
        scheduler = make_scheduler(optimizer) if make_scheduler else None
        optimizer.step(lambda: None)  # type: ignore[arg-type,return-value]  # there is no one loss
        if scheduler:
            scheduler.step()
            _require_counts(scheduler)
    except Exception as fault:  # of whatever kind: they may be anybody's, and are told in one sentence
        kind = "" if isinstance(fault, ValueError) else f"{type(fault).__name__}: "
        raise UsageError(f"This optimizer, or its scheduler, cannot train blocks: {kind}{fault}.") from fault


def _require_counts(scheduler: LRScheduler) -> None:
    for name, value in vars(scheduler).items():
        if isinstance(value, int) and value < 0:
            raise ValueError(f"{name} of {type(scheduler).__name__} must not be negative, and is {value}")
