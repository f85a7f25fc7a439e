"""Self-defined targets beside few labels by equilibrium propagation: states settle, again while a classifier pulls.

D. Liu, J. Laydevant, A. Pontlevy, D. Querlioz, J. Grollier, "Unsupervised End-to-End Training with a Self-Defined
Target", Neuromorphic Computing and Engineering 4 (4), 2024; the read-out is that of A. Laborieux et al., "Scaling
Equilibrium Propagation to Deep ConvNets", Frontiers in Neuroscience 15, 2021.

    image x ⇄ s1 ⇄ … ⇄ sL ──► z = W sL + b     free: settle; c is the label, or wins by z − H
                       └ −β ∂L(z, c)/∂sL       nudged: go on, a few steps

Layers below learn from the difference between the two, the read-out from L of the nudged states.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from losses import probabilities, top1
from losses.errors import NetworkError, UsageError
from models.method import LabelledImages
from models.methods.semi_supervised_target import SemiSupervisedTarget
from models.networks.chain import NetworkCallable
from models.parts.settling import Layers, Pull, Settling, contrast, drawn_masks, linear_layers, require_settling


class SemiSupervisedEquilibrium(SemiSupervisedTarget):
    """One block whose layers settle together below a classifier that does not; few images have labels.

    The loss that is logged, and that is evaluated, is that of the free states. Cost tables count one pass each way,
    not the settling.

    Args:
        network: an ``MLP`` with ``batch_norm: false`` and ``clamped: true``.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        settling: the two phases.
        options: turns, optimizers and the other arguments of :class:`SemiSupervisedTarget`.

    Raises:
        NetworkError: a layer of another kind, or none.
        UsageError: several blocks or heads.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        settling: Settling = Settling(),
        **options: Any,
    ) -> None:
        super().__init__(network, image_shape, num_classes, **options)
        if len(self.heads) > 1:
            raise UsageError(
                "Layers that settle together are one block with one classifier: leave num_blocks at 1, and final_head "
                "out."
            )
        require_settling((self.blocks[0], self.heads[0]))
        if not self.layers:
            raise NetworkError("There is no layer whose states could settle: give the MLP a hidden one.")
        self.settling = settling

    @property
    def layers(self) -> Layers:
        """Those whose states settle: all but the classifier."""
        return linear_layers(self.blocks)

    # -- the algorithm ------------------------------------------------------------------------

    @override
    def block_output(self, k: int, x: Tensor) -> Tensor:
        """The pixels: layers do not compute one after the other."""
        return x.flatten(1)

    @override
    def local_loss(self, k: int, features: Tensor, batch: LabelledImages) -> Tensor:
        """The output loss of the free states, with the gradient of equilibrium propagation."""
        with torch.no_grad():
            pixels, *masks = drawn_masks((self.blocks[0], self.heads[0]), features)
            x = features * pixels
            free = self.settling.free(self.layers, x, masks)
            logits = self.heads[0](free[-1])
            classes = batch.labels if self.has_labels else self.winners(0, logits)
            nudged = self.settling.nudged(self.layers, x, free, masks, self._pull(classes))
        if self.has_labels:
            self.record(0, "top1", top1(probabilities(logits), classes))
        read = [self.prediction_loss(self.heads[0](states[-1]), classes) for _, states in nudged]
        update = contrast(self.layers, x, free, nudged) + torch.stack(read).mean()
        return update - update.detach() + self.prediction_loss(logits, classes)

    def _pull(self, classes: Tensor) -> Pull:
        """How the classifier draws the states below it towards the classes: −∂L/∂s."""

        def pull(states: Tensor) -> Tensor:
            with torch.enable_grad():
                states = states.detach().requires_grad_()
                loss = self.checked_losses(self.heads[0](states), classes).sum()
            return -torch.autograd.grad(loss, states)[0]

        return pull

    # -- beside training ------------------------------------------------------------------------

    @override
    def walk(self, images: Tensor) -> Iterator[Tensor]:
        """The last states, settled freely."""
        yield self.settling.free(self.layers, images.flatten(1))[-1]
