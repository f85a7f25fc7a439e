"""Ordinary backpropagation: one block, the yardstick for everything else."""

from typing import Any

from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.chain import NetworkCallable
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead
from models.networks.memory.checkpointed import Checkpointed
from ranges import NonNegativeInt


class Backprop(DecoupledGreedy):
    """The whole network as one block, trained through its classifier, or another last head, by the same loop.

    Args:
        network: the network, a class from ``models.networks``.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        checkpoint_segments: gradient checkpointing: keep activations only at the borders of that
            many segments and recompute the rest in the backward pass (BatchNorm statistics are then
            updated twice per step, as in PyTorch's own); 0 keeps everything.
        training: last_head (the classifier), output_loss, optimizer and the other arguments of
            :class:`DecoupledGreedy` and its bases.

    Raises:
        NetworkError: more checkpointing segments than units.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        checkpoint_segments: NonNegativeInt = 0,
        **training: Any,
    ) -> None:
        super().__init__(
            network, image_shape, num_classes, num_blocks=1, cut=Cut(), head=AuxHead, final_head=None, **training
        )
        if checkpoint_segments:
            (whole,) = self.blocks
            self.blocks[0] = Checkpointed(whole, checkpoint_segments)
