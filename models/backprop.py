"""Ordinary backpropagation: one block, the yardstick for everything else."""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from models.decoupled_greedy import DecoupledGreedy
from models.networks import AuxHead, Cut, NetworkCallable, NetworkError


class Backprop(DecoupledGreedy):
    """The whole network as one block, trained through its classifier by the same loop.

    Args:
        network: the network, a class from ``models.networks``.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        checkpoint_segments: gradient checkpointing: keep activations only at the borders of that
            many segments and recompute the rest in the backward pass (BatchNorm statistics are then
            updated twice per step, as in PyTorch's own); 0 keeps everything.
        training: optimizer, scheduler and the other arguments of :class:`LocalLearning`.

    Raises:
        NetworkError: more checkpointing segments than units.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        checkpoint_segments: int = 0,
        **training: Any,
    ) -> None:
        super().__init__(network, image_shape, num_classes, num_blocks=1, cut=Cut(), head=AuxHead, **training)
        if not 0 <= checkpoint_segments <= len(self.blocks[0]):
            raise NetworkError(
                f"{self.network_title} has {len(self.blocks[0])} units: choose checkpoint_segments from 0 to that, "
                f"not {checkpoint_segments}."
            )
        if checkpoint_segments:
            self.blocks[0] = _Checkpointed(self.blocks[0], checkpoint_segments)


class _Checkpointed(nn.Sequential):
    """A sequence of units that forgets its activations and recomputes them segment by segment."""

    def __init__(self, units: nn.Sequential, segments: int) -> None:
        super().__init__(OrderedDict(units.named_children()))
        self.segments = segments

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        # Reentrant, because saved-tensor hooks (our byte meter) do not see what the other kind
        # recomputes; it needs an input that requires a gradient.
        x = x.detach().requires_grad_()
        return checkpoint_sequential(list(self), self.segments, x, use_reentrant=True)
