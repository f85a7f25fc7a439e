"""What replaces the regularization that deeper layers give in end-to-end training."""

from dataclasses import dataclass

from torch import nn

from losses.errors import UsageError
from models.networks.layers.noise import FeatureNoise
from ranges import NonNegativeFloat, PositiveInt, Share


@dataclass(frozen=True)
class Regularization:
    """What a block misses when no deeper ones learn with it, replaced by explicit pressure on it.

    Which "few simple steps" the thesis takes is not known; these are our reading. A head that looks
    ahead (:class:`models.networks.ConvHead`) is the fourth; it is the method's ``head``.

    Args:
        weight_decay: factor on the optimizer's weight decay (then above 0), for a block and its head.
        input_dropout: share of the entries of a learning block's detached input that are set to 0.
        input_noise: standard deviation of normal noise on that input, relative to the input's own.
        overparameterize: number of factors whose product each weight of the learning blocks is; a finished block's are
            multiplied into one. See :mod:`models.networks.layers.overparameterized`.

    Raises:
        UsageError: a factor or noise below 0, a share outside 0 … 1, or products of no factor.
    """

    weight_decay: NonNegativeFloat = 1.0
    input_dropout: Share = 0.0
    input_noise: NonNegativeFloat = 0.0
    overparameterize: PositiveInt = 1

    def __post_init__(self) -> None:
        if min(self.weight_decay, self.input_noise) < 0 or not 0 <= self.input_dropout < 1:
            raise UsageError(
                f"weight_decay and input_noise are at least 0 and input_dropout between 0 and 1, not {self}."
            )
        if self.overparameterize < 1:
            raise UsageError(f"overparameterize counts factors: 1 (plain) or more, not {self.overparameterize}.")

    def disturbance(self) -> nn.Module:
        """What a learning block's input goes through; nothing in evaluation."""
        noise = [FeatureNoise("all", self.input_noise)] if self.input_noise else []
        return nn.Sequential(*([nn.Dropout(self.input_dropout)] if self.input_dropout else []), *noise)
