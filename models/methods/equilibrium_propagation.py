"""Equilibrium propagation: states that settle, a second time while the outputs are nudged towards their targets.

B. Scellier, Y. Bengio, Frontiers in Computational Neuroscience 11, 2017; with self-defined targets: D. Liu, J.
Laydevant, A. Pontlevy, D. Querlioz, J. Grollier, Neuromorphic Computing and Engineering 4 (4), 2024.

    image x ⇄ s1 ⇄ s2 ⇄ … ⇄ outputs y          free: settle, T steps
                              └ β (target − y)   nudged: go on, a few steps

Weights learn from the difference between the two, layer by layer: ΔW ∝ (s_l s_{l−1}ᵀ nudged − free) / β. No gradient
goes through the settling.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from losses.errors import UsageError
from models.method import LabelledImages
from models.methods.self_defined_target import SelfDefinedTarget
from models.networks.chain import NetworkCallable
from models.parts.settling import Layers, Settling, contrast, drawn_masks, linear_layers, require_settling


class EquilibriumPropagation(SelfDefinedTarget):
    """One block, all of whose layers settle together, with self-defined targets for its outputs.

    The loss that is logged is the square error of the free outputs, as in :class:`SelfDefinedTarget`; in evaluation
    outputs are what has settled freely. Cost tables count one pass each way, not the settling.

    Args:
        network: layers of an ``MLP`` with ``batch_norm: false`` and ``clamped: true``, or none (``hidden: []``).
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data. Nothing is trained on them.
        settling: the two phases.
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
        settling: Settling = Settling(),
        **training: Any,
    ) -> None:
        super().__init__(network, image_shape, num_classes, **training)
        if self.num_blocks > 1:
            raise UsageError("Layers that settle together are one block: leave num_blocks at 1.")
        require_settling(self.part_modules(0)[:2])
        self.settling, self.settled_outputs = settling, nn.Identity()

    @property
    def layers(self) -> Layers:
        """From the pixels to the outputs."""
        return linear_layers((self.blocks[0], self.heads[0]))

    # -- the algorithm ------------------------------------------------------------------------

    @override
    def block_output(self, k: int, x: Tensor) -> Tensor:
        """The pixels: layers do not compute one after the other."""
        return x.flatten(1)

    @override
    def local_loss(self, k: int, features: Tensor, batch: LabelledImages) -> Tensor:
        """The square error of the outputs, with the gradient of equilibrium propagation."""
        with torch.no_grad():
            pixels, *masks = drawn_masks((self.blocks[0], self.heads[0]), features)
            masks.append(self.target(0).mask(features.new_empty(len(features), self.outputs)))
            x = features * pixels
            free = self.settling.free(self.layers, x, masks)
            target = self.targets[0](free[-1], masks[-1])
            nudged = self.settling.nudged(self.layers, x, free, masks, lambda y: target - y)
        self.settled_outputs(free[-1])
        update = contrast(self.layers, x, free, nudged)
        return update - update.detach() + (free[-1] - target).square().mean()

    # -- beside training ------------------------------------------------------------------------

    @property
    @override
    def judged_modules(self) -> Sequence[nn.Module]:
        """What the free outputs go through: heads alone make none."""
        return [self.settled_outputs]

    @override
    def block_features(self, images: Tensor, last: int | None = None) -> dict[str, Tensor]:
        """``block1/outputs`` ``(B, N)`` and ``block1/gap``, what they read: all settled freely."""
        x = images.flatten(1)
        *_, read, outputs = x, *self.settling.free(self.layers, x)
        return {"block1/gap": read, "block1/outputs": self.settled_outputs(outputs)}
