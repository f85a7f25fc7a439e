"""Forward-Forward of channels: each class owns some of a block's channels, and their activity is its goodness.

    images ──► block 1 ──detach──► standardised, block 2 ──detach──► …
                 │                                 │
      goodness of each class            goodness of each class        (means over the class's channels)
                 │                                 │
           cross-entropy                     cross-entropy

G. Hinton's Forward-Forward (arXiv 2212.13345) has goodness rise on positive data and fall on negative data; here it
rises in the channels of an image's class and falls in all others, so that no negative data is made.
A. Papachristodoulou et al., "Convolutional Channel-wise Competitive Learning for the Forward-Forward Algorithm", AAAI
2024 (arXiv 2312.12668); L. Sun et al., "DeeperForward", ICLR 2025.

That is decoupled greedy learning with heads that have no weights, in a network that hands no goodness on.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.chain import NetworkCallable
from models.networks.goodness_vgg import GoodnessVGG
from models.networks.heads.classifiers import HeadCallable
from models.networks.heads.goodness import ClassGoodness
from ranges import PositiveInt


class ChannelGoodness(DecoupledGreedy):
    """K blocks whose channels compete class by class; the model predicts by the sum of later blocks' goodnesses.

    The sum is evaluated as ``val/sum/top1``, which is the model's own ``val/top1``, too; it stands for an ensemble.

    Args:
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        network: must take its goodness out of what a block reads: ``GoodnessVGG``.
        num_blocks: K; published is a block for each layer. 1 is backpropagation to the last layer's goodness.
        goodness: what makes goodnesses of a block's features: ``ClassGoodness``.
        votes_from: first block, from 1, whose goodness is in the sum; with fewer blocks the last one alone. Published
            are the first and the last voter that are best on validation images.
        options: cut, optimizer and the other arguments of :class:`DecoupledGreedy`, which says what they are.

    Raises:
        NetworkError: the classes do not divide the channels of a block; the network cannot be cut as asked.
    """

    has_ensemble: ClassVar[bool] = False

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        network: NetworkCallable = GoodnessVGG,
        num_blocks: int = 2,
        goodness: HeadCallable = ClassGoodness,
        votes_from: PositiveInt = 2,
        **options: Any,
    ) -> None:
        super().__init__(
            network,
            image_shape,
            num_classes,
            num_blocks,
            head=goodness,
            last_head=goodness,
            final_head=None,
            **options,
        )
        self.votes_from = votes_from

    @override
    def forward(self, images: Tensor) -> Tensor:
        """The model's prediction: the sum of goodnesses, ``(B, classes)``."""
        return self.block_logits(images)["sum"]

    @override
    def block_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Goodnesses of the blocks that have learned, and last the ``sum`` of those from ``votes_from`` on."""
        goodness = super().block_logits(images)
        voters = [name for name in goodness if name in self.block_names[self.votes_from - 1 :]] or [*goodness][-1:]
        return goodness | {"sum": torch.stack([goodness[name] for name in voters]).sum(0)}
