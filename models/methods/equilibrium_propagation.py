"""Equilibrium propagation: states that settle, a second time while the outputs are nudged towards their targets.

B. Scellier, Y. Bengio, Frontiers in Computational Neuroscience 11, 2017; with self-defined targets: D. Liu, J.
Laydevant, A. Pontlevy, D. Querlioz, J. Grollier, Neuromorphic Computing and Engineering 4 (4), 2024.

    image x ⇄ s1 ⇄ s2 ⇄ … ⇄ outputs y          free: settle, T steps
                              └ β (target − y)   nudged: go on, a few steps

Weights learn from the difference between the two, layer by layer: ΔW ∝ (s_l s_{l−1}ᵀ nudged − free) / β. No gradient
goes through the settling.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from losses.errors import NetworkError, UsageError
from models.method import LabelledImages
from models.methods.self_defined_target import SelfDefinedTarget
from models.networks.chain import NetworkCallable
from ranges import PositiveFloat, PositiveInt

_KNOWN = nn.Flatten, nn.Dropout, nn.Linear, nn.Hardtanh


class EquilibriumPropagation(SelfDefinedTarget):
    """One block, all of whose layers settle together, with self-defined targets for its outputs.

    A state s_l is drawn towards W_l s_{l−1} + b_l + W_{l+1}ᵀ s_{l+1}, by steps of ``step_size``, and clamped to 0 … 1.
    The loss that is logged is the square error of the free outputs, as in :class:`SelfDefinedTarget`; in evaluation
    outputs are what has settled freely. Cost tables count one pass each way, not the settling.

    Args:
        network: layers of an ``MLP`` with ``batch_norm: false`` and ``clamped: true``, or none (``hidden: []``).
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data. Nothing is trained on them.
        free_steps: T, of the free phase.
        nudged_steps: of the nudged phase.
        step_size: dt.
        beta: β, strength of the nudge.
        nudging: its sign is drawn for every batch, or both signs are taken and halved.
        training: outputs, target, optimizer and the other arguments of :class:`SelfDefinedTarget`.

    Raises:
        NetworkError: a layer of another kind.
        UsageError: several blocks.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        free_steps: PositiveInt = 40,
        nudged_steps: PositiveInt = 10,
        step_size: PositiveFloat = 0.2,
        beta: PositiveFloat = 0.2,
        nudging: Literal["random_sign", "symmetric"] = "random_sign",
        **training: Any,
    ) -> None:
        super().__init__(network, image_shape, num_classes, **training)
        if self.num_blocks > 1:
            raise UsageError("Layers that settle together are one block: leave num_blocks at 1.")
        self.free_steps, self.nudged_steps, self.step_size = free_steps, nudged_steps, step_size
        self.beta, self.nudging = beta, nudging
        modules = [module for module in self._modules_in_order() if not any(module.children())]
        if strange := [type(module).__name__ for module in modules if not isinstance(module, _KNOWN)]:
            raise NetworkError(
                f"States settle between 0 and 1 in fully connected layers; this network has a {strange[0]}. Take an "
                "MLP with batch_norm: false and clamped: true."
            )

    @property
    def layers(self) -> list[nn.Linear]:
        """From the pixels to the outputs."""
        return [module for module in self._modules_in_order() if isinstance(module, nn.Linear)]

    def _modules_in_order(self) -> Iterator[nn.Module]:
        return chain(self.blocks[0].modules(), self.heads[0].modules())

    # -- the algorithm ------------------------------------------------------------------------

    @override
    def block_output(self, k: int, x: Tensor) -> Tensor:
        """The pixels: layers do not compute one after the other."""
        return x.flatten(1)

    @override
    def local_loss(self, k: int, features: Tensor, batch: LabelledImages) -> Tensor:
        """The square error of the outputs, with the gradient of equilibrium propagation."""
        with torch.no_grad():
            masks = self._masks(features)
            x = features * masks[0]
            free = self.settle(x, self._rest(x), masks[1:], self.free_steps)
            target = self.targets[0](free[-1], masks[-1])
            signs = (1, -1) if self.nudging == "symmetric" else (1 - 2 * int(torch.randint(2, ())),)
            nudged = [(s * self.beta, self.nudged(x, free, masks[1:], target, s * self.beta)) for s in signs]
        contrasts = [(self.energy(x, free) - self.energy(x, states)) / beta for beta, states in nudged]
        contrast = torch.stack(contrasts).mean() / len(x)
        return contrast - contrast.detach() + (free[-1] - target).square().mean()

    def nudged(
        self, x: Tensor, free: Sequence[Tensor], masks: Sequence[Tensor], target: Tensor, beta: float
    ) -> list[Tensor]:
        """States that go on from the free ones while the outputs are drawn to their targets."""
        return self.settle(x, free, masks, self.nudged_steps, target, beta)

    def settle(
        self,
        x: Tensor,
        states: Sequence[Tensor],
        masks: Sequence[Tensor],
        steps: int,
        target: Tensor | None = None,
        beta: float = 0.0,
    ) -> list[Tensor]:
        """States of all layers after so many steps, ``(B, width)`` each.

        Args:
            x: pixels, ``(B, C·H·W)``.
            states: to begin with, from the first layer's to the outputs.
            masks: 1 or 0 for every unit that a state belongs to.
            steps: how many; all layers take each at once.
            target: of the outputs; none by default.
            beta: how strongly they are drawn to it.
        """
        first, *others = self.layers
        states, below = list(states), first(x)  # pixels stay as they are
        for _ in range(steps):
            drives = [below, *(layer(s) for layer, s in zip(others, states, strict=False))]
            for i, above in enumerate(others):
                drives[i] = drives[i] + states[i + 1] @ above.weight
            if target is not None:
                drives[-1] = drives[-1] + beta * (target - states[-1])
            states = [
                mask * (s + self.step_size * (drive - s)).clamp(0, 1)
                for s, drive, mask in zip(states, drives, masks, strict=True)
            ]
        return states

    def energy(self, x: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Σ s_l · (W_l s_{l−1} + b_l) over layers and images: the part of −E that weights are in."""
        pairs = zip(self.layers, (x, *states), states, strict=False)
        return torch.stack([(F.linear(below, layer.weight, layer.bias) * s).sum() for layer, below, s in pairs]).sum()

    def _rest(self, x: Tensor) -> list[Tensor]:
        return [x.new_zeros(len(x), layer.out_features) for layer in self.layers]

    def _masks(self, x: Tensor) -> list[Tensor]:
        """1 or 0 for every pixel, unit and output, the same in both phases; what is kept is not enlarged."""
        shares, kept = [], 1.0
        for module in self._modules_in_order():
            if isinstance(module, nn.Dropout):
                kept *= 1 - module.p
            elif isinstance(module, nn.Linear):
                shares.append(kept)
                kept = 1.0
        widths = [layer.in_features for layer in self.layers]
        drawn = [x.new_full((len(x), width), kept).bernoulli() for width, kept in zip(widths, shares, strict=True)]
        return [*drawn, self.target(0).mask(x.new_empty(len(x), self.outputs))]

    # -- beside training ------------------------------------------------------------------------

    @override
    def block_features(self, images: Tensor, last: int | None = None) -> dict[str, Tensor]:
        """``block1/outputs`` ``(B, N)`` and ``block1/gap``, what they read: all settled freely."""
        x = images.flatten(1)
        rest = self._rest(x)
        *_, read, outputs = x, *self.settle(x, rest, [torch.ones_like(s) for s in rest], self.free_steps)
        return {"block1/gap": read, "block1/outputs": outputs}
