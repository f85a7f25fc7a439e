"""The weights that training begins with, drawn anew."""

from typing import Literal

import lightning.pytorch as L
from torch import nn
from typing_extensions import override

from experiments.callbacks.entropy import weights_of
from ranges import PositiveFloat


class Initialisation(L.Callback):
    """Draws all weight tensors anew before training: uniform or normal, with mean 0 and the same std.

    Torch's own layers are uniform with gain 1/√3, the convolutions of the networks here are normal. What begins at
    zero goes on doing so. A resumed run gets its checkpoint's weights afterwards.

    Args:
        distribution: ``uniform`` on ±√3 std, or ``normal``.
        gain: std is gain / √(fan-in): √2 is He's (He et al., 2015); by default each tensor keeps the std that it has.
    """

    changes_training = True

    def __init__(self, distribution: Literal["uniform", "normal"], gain: PositiveFloat | None = None) -> None:
        self.distribution, self.gain = distribution, gain

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Draw; Lightning reads a checkpoint later."""
        for weight in weights_of(pl_module).values() if stage == "fit" else ():
            fan_in = weight[0].numel()
            std = self.gain / fan_in**0.5 if self.gain and weight.any() else float(weight.detach().std(correction=0))
            if self.distribution == "uniform":
                nn.init.uniform_(weight, -(3**0.5) * std, 3**0.5 * std)
            else:
                nn.init.normal_(weight, std=std)
