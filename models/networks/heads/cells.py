"""Cells: what makes a block a complete model that rebuilds its own input, without labels.

    v_{k−1} ──► block k ──► v_k ──► decoder ──► the cell's input again
                                       └──► discriminator: is it real?        (AdversarialCell)

T. Hwang, H. Seo, S. Jung, "Employing Layerwised Unsupervised Learning to Lessen Data and Loss Requirements in
Forward-Forward Algorithms", arXiv 2404.14664. Widths, noise and weights are this suite's choice: the paper's were not
available. Each is built as ``Cell(input_shape, feature_shape, …)``, shapes of one sample.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from typing_extensions import override

from losses.adversarial import discriminator_accuracy, discriminator_loss, generator_loss
from losses.errors import NetworkError
from ranges import NonNegativeFloat, PositiveFloat, PositiveInt, Share


class AutoEncoderCell(nn.Module):
    """A decoder that rebuilds a block's input from its features; base of all cells.

    Args:
        input_shape: of what the block reads.
        feature_shape: of what it makes of that.

    Raises:
        NetworkError: maps cannot be rebuilt from so small ones.
    """

    disturbs: ClassVar[bool] = False
    """Whether the block learns from a disturbed input."""

    def __init__(self, input_shape: tuple[int, ...], feature_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.decoder = decoder(feature_shape, input_shape)

    def disturbed(self, x: Tensor) -> Tensor:
        """What the block reads of its input ``(B, …)`` while it learns."""
        return x

    @override
    def forward(self, features: Tensor) -> Any:
        """The block's input, rebuilt: ``(B, *input_shape)``."""
        return self.decoder(features)

    def judge(self, features: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that block and cell learn from, and what is logged beside it.

        Args:
            features: of the block ``(B, *feature_shape)``.
            target: its undisturbed input ``(B, *input_shape)``.
        """
        error = F.mse_loss(self(features), target)
        return error, {"reconstruction": error}

    def learning_apart(self) -> list[dict[str, Any]]:
        """Groups of parameters with options of their own, as optimizers take them."""
        return []


CellCallable = Callable[[tuple[int, ...], tuple[int, ...]], AutoEncoderCell]
"""(input shape, feature shape) → cell."""


class DenoisingCell(AutoEncoderCell):
    """The block reads its input with Gaussian noise, and the decoder rebuilds it without.

    Args:
        noise: standard deviation of the noise; images are normalised and handed-on features have deviation 1.
    """

    disturbs: ClassVar[bool] = True

    def __init__(
        self, input_shape: tuple[int, ...], feature_shape: tuple[int, ...], noise: NonNegativeFloat = 0.3
    ) -> None:
        super().__init__(input_shape, feature_shape)
        self.noise = noise

    @override
    def disturbed(self, x: Tensor) -> Tensor:
        return x + self.noise * torch.randn_like(x)


class AdversarialCell(AutoEncoderCell):
    """Block and decoder are a generator, whose output a discriminator tells from the block's input.

    Both learn at once, from the weights before the step: the generator's loss goes through the discriminator without
    reaching its weights, the discriminator's stops at what was rebuilt. That is what two optimizers would do.
    ``cost`` counts the discriminator on what was rebuilt (twice), not on the input.

    Args:
        weight: of the generator's adversarial loss.
        reconstruction: weight of the mean square error; 0 leaves the adversarial loss alone.
        width: of the discriminator's hidden layer.
        rate: the discriminator's learning rate.
        betas: the same of its Adam or AdamW.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        feature_shape: tuple[int, ...],
        weight: NonNegativeFloat = 0.1,
        reconstruction: NonNegativeFloat = 1.0,
        width: PositiveInt = 256,
        rate: PositiveFloat = 2e-4,
        betas: tuple[Share, Share] = (0.5, 0.999),
    ) -> None:
        super().__init__(input_shape, feature_shape)
        layers = nn.Linear(math.prod(input_shape), width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        self.discriminator = nn.Sequential(nn.Flatten(), *layers)
        self.weight, self.reconstruction = weight, reconstruction
        self.rate, self.betas = rate, betas

    @override
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is rebuilt; its logits with gradient for the generator alone; the same for the discriminator alone."""
        rebuilt = self.decoder(features)
        fixed = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        return rebuilt, functional_call(self.discriminator, fixed, (rebuilt,)), self.discriminator(rebuilt.detach())

    @override
    def judge(self, features: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss plus the discriminator's: no weight learns from both."""
        rebuilt, fooled, fakes = self(features)
        real = self.discriminator(target)
        parts = {
            "reconstruction": F.mse_loss(rebuilt, target),
            "generator": generator_loss(fooled),
            "discriminator": discriminator_loss(real, fakes),
            "discriminator_accuracy": discriminator_accuracy(real.detach(), fakes.detach()),
        }
        generator = self.reconstruction * parts["reconstruction"] + self.weight * parts["generator"]
        return generator + parts["discriminator"], parts

    @override
    def learning_apart(self) -> list[dict[str, Any]]:
        """The discriminator, with its rate and betas."""
        return [{"params": [*self.discriminator.parameters()], "lr": self.rate, "betas": tuple(self.betas)}]


def decoder(feature_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> nn.Module:
    """One layer that rebuilds a target from features: maps from maps by a transposed convolution, else a linear one.

    Raises:
        NetworkError: maps cannot be rebuilt from so small ones.
    """
    if len(feature_shape) == len(target_shape) == 3:
        return transposed_convolution(feature_shape, target_shape)
    linear = nn.Linear(math.prod(feature_shape), math.prod(target_shape))
    return nn.Sequential(nn.Flatten(), linear, nn.Unflatten(1, target_shape))


def transposed_convolution(feature_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> nn.ConvTranspose2d:
    """That which enlarges maps ``(C, H, W)`` to the target's, the counterpart of a 3×3 convolution with stride.

    From a stride of 3 on its kernel is as large as it has to be for every pixel to be read.

    Raises:
        NetworkError: no stride enlarges the maps' sides to the target's.
    """
    (channels, *sides), (channels_out, *target) = feature_shape, target_shape
    strides = [-(-there // here) for here, there in zip(sides, target, strict=True)]
    kernels = [max(3, 2 * stride - 1) for stride in strides]
    missing = [there - (here - 1) * s - 1 for here, there, s in zip(sides, target, strides, strict=True)]
    if min(missing) < 0:
        raise NetworkError(
            f"No transposed convolution makes maps of {target[0]}×{target[1]} from {sides[0]}×{sides[1]}: use "
            "convolutions with padding, whose stride or pooling divides the sides."
        )
    (rows, columns), (high, wide), (below, beside) = strides, kernels, missing
    return nn.ConvTranspose2d(
        channels, channels_out, (high, wide), (rows, columns), (high // 2, wide // 2), (below, beside)
    )
