"""Entropy of weights, gradients and updates; and the initialisation that decides how that of the weights moves."""

from collections.abc import Mapping
from typing import Literal

import lightning.pytorch as L
from torch import Tensor, nn
from torch.optim import Optimizer

from experiments.distributed.entropy import h8


class Entropy(L.Callback):
    """Logs, before training and after every epoch, how many bits the numbers of each weight tensor carry.

    Per tensor ``entropy/<parameter>/``, and as ``entropy/total/`` the mean over all weights:

    - ``weight_h8``, ``gradient_h8``, ``update_h8``: range-normalised entropy (:func:`experiments.distributed.h8`) of
      the weights, of their gradient in the epoch's last step, and of their change over the epoch;
    - ``weight_rms``, and ``weight_kurtosis``: fourth moment over squared variance: 1.8 uniform, 3 normal.

    Of tensors with at least two dimensions; biases and BatchNorm are left out. "The entropy of the weights falls during
    training" (A. Øland, CMU-CS-24-147, whose estimator was not available) depends on estimator, initialisation and
    learning rate: this one falls from uniform weights, because the range outgrows the bulk; from normal ones of He's
    std (:class:`Initialisation`) it hardly moves at a low rate; from small weights at a high rate it falls from both.
    The RMS grows all the while, so that an entropy at a fixed step would rise.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}
        self._gradients: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the initial weights."""
        if trainer.global_step == 0:
            figures = _logged({name: _of_weights(weight) for name, weight in weights_of(pl_module).items()}, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=0)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights."""
        self._before = {name: weight.detach().clone() for name, weight in weights_of(pl_module).items()}
        self._gradients = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients of the epoch's last step, while they are there."""
        if trainer.is_last_batch:
            gradients = {name: weight.grad for name, weight in weights_of(pl_module).items()}
            self._gradients |= {name: h8(gradient) for name, gradient in gradients.items() if gradient is not None}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the epoch."""
        figures = {}
        for name, weight in weights_of(pl_module).items():
            figures[name] = _of_weights(weight) | {"update_h8": h8(weight - self._before[name])}
            if name in self._gradients:  # a frozen block has none
                figures[name]["gradient_h8"] = self._gradients[name]
        pl_module.log_dict(_logged(figures, pl_module))


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


def _logged(figures: Mapping[str, Mapping[str, float]], model: nn.Module) -> dict[str, float]:
    """Metric names, and the means over all weights that a figure is there for."""
    sizes = {name: weight.numel() for name, weight in weights_of(model).items()}
    logged = {f"entropy/{name}/{key}": value for name, own in figures.items() for key, value in own.items()}
    for key in {key for own in figures.values() for key in own}:
        having = [name for name, own in figures.items() if key in own]
        total = sum(sizes[name] * figures[name][key] for name in having)
        logged[f"entropy/total/{key}"] = total / sum(sizes[name] for name in having)
    return logged


class Initialisation(L.Callback):
    """Draws all weight tensors anew before training: uniform or normal, with mean 0 and the same std.

    Torch's own ``Linear`` is uniform with gain 1/√3, the convolutions of the networks here are normal. A resumed run
    gets its checkpoint's weights afterwards.

    Args:
        distribution: ``uniform`` on ±√3 std, or ``normal``.
        gain: std is gain / √(fan-in): √2 is He's (He et al., 2015); by default each tensor keeps the std that it has.
    """

    changes_training = True

    def __init__(self, distribution: Literal["uniform", "normal"], gain: float | None = None) -> None:
        self.distribution, self.gain = distribution, gain

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Draw; Lightning reads a checkpoint later."""
        for weight in weights_of(pl_module).values() if stage == "fit" else ():
            fan_in = weight[0].numel()
            std = self.gain / fan_in**0.5 if self.gain else float(weight.detach().std(correction=0))
            if self.distribution == "uniform":
                nn.init.uniform_(weight, -(3**0.5) * std, 3**0.5 * std)
            else:
                nn.init.normal_(weight, std=std)
