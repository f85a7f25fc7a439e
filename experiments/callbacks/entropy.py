"""Entropy of weights, gradients and updates."""

from collections.abc import Mapping

import lightning.pytorch as L
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from experiments.distributed.entropy import h8
from models.method import log_epoch


class Entropy(L.Callback):
    """Logs, before training and after every epoch, how many bits the numbers of each weight tensor carry.

    Per tensor ``entropy/<parameter>/``, and as ``entropy/total/`` the mean over all weights:

    - ``weight_h8``, ``gradient_h8``, ``update_h8``: range-normalised entropy
      (:func:`~experiments.distributed.entropy.h8`) of the weights, of their gradient in the epoch's last step, and of
      their change over the epoch;
    - ``weight_rms``, and ``weight_kurtosis``: fourth moment over squared variance: 1.8 uniform, 3 normal.

    Of tensors with at least two dimensions; biases and BatchNorm are left out. "The entropy of the weights falls during
    training" (A. Øland, CMU-CS-24-147, whose estimator was not available) depends on estimator, learning rate and
    initialisation (callback ``Initialisation``): docs/benchmarks/communication.md.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._gradients: dict[str, float] = {}

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the initial weights. A run that goes on within an epoch has an update of it to come, too."""
        self.on_train_epoch_start(trainer, pl_module)
        if trainer.global_step == 0:
            metrics = _logged({name: _of_weights(weight) for name, weight in weights_of(pl_module).items()}, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=0)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before = {name: weight.detach().clone() for name, weight in weights_of(pl_module).items()}
        self._gradients = {}

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients of the epoch's last step, while they are there."""
        if trainer.is_last_batch:
            for name, weight in weights_of(pl_module).items():
                if weight.grad is not None and weight.shape == self._before[name].shape:  # and not of some groups
                    self._gradients[name] = h8(weight.grad)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics, merged = {}, getattr(trainer.strategy, "merged", dict)  # of what all processes have learned
        self._gradients = merged(self._gradients)
        for name, weight in weights_of(pl_module).items():
            metrics[name] = _of_weights(weight) | {"update_h8": h8(weight - self._before[name])}
            if name in self._gradients:  # a frozen block has none
                metrics[name]["gradient_h8"] = self._gradients[name]
        log_epoch(pl_module, _logged(metrics, pl_module))


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name → weight tensor: parameters with at least two dimensions."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 1}


def _of_weights(weight: Tensor) -> dict[str, float]:
    numbers = weight.detach().double()
    centred = numbers - numbers.mean()
    return {
        "weight_h8": h8(weight),
        "weight_rms": float(numbers.square().mean().sqrt()),
        "weight_kurtosis": float(centred.pow(4).mean() / centred.square().mean().square()),
    }


def _logged(metrics: Mapping[str, Mapping[str, float]], model: nn.Module) -> dict[str, float]:
    """The metrics of each weight under their logged names, and their means over the weights that have them."""
    sizes = {name: weight.numel() for name, weight in weights_of(model).items()}
    logged = {f"entropy/{name}/{key}": value for name, own in metrics.items() for key, value in own.items()}
    for key in {key for own in metrics.values() for key in own}:
        having = [name for name, own in metrics.items() if key in own]
        total = sum(sizes[name] * metrics[name][key] for name in having)
        logged[f"entropy/total/{key}"] = total / sum(sizes[name] for name in having)
    return logged
