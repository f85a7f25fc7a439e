"""Overlapping supervision with labels: the cascades of HPFF.

J. Su, C. He, F. Zhu, X. Xu, D. Guan, C. Si, "HPFF: Hierarchical Locally Supervised Learning with Patch Feature Fusion",
ECCV 2024, and its released code (Zeudfish/HPFF). Every two neighbouring blocks share a head on the second
one's output, whose loss reaches both; beside it the second block has a head alone:

    L_k = w_alone · CE(alone(h_k), y) + w_pair · CE(pair(h_k), y)        k = 2 … K

The released code runs each inner block three times on equal values; here it runs once (``models/overlapping.py``), with
the same gradients, but BatchNorm's running statistics move once per step. The code's weights are the defaults; in it,
as here, the first block has no head alone, and the last one has the network's classifier for both. The paper's patch
heads are not built: a plain head of the same layers sees the whole map.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from models.classification import LocalClassification
from models.method import LabelledImages
from models.networks.chain import NetworkCallable
from models.networks.cut import Cut, block_shapes, cut_chain
from models.networks.heads.classifiers import AuxHead, HeadCallable
from models.networks.sequential import build_chain
from models.overlapping import OverlappingBlocks
from ranges import NonNegativeFloat, PositiveFloat


class TwoHeads(nn.Module):
    """Two heads on the same features.

    Args:
        alone: whose loss ends at the block's input.
        pair: whose loss goes on into the block below; it is the block's prediction.
    """

    def __init__(self, alone: nn.Module, pair: nn.Module) -> None:
        super().__init__()
        self.alone, self.pair = alone, pair

    @override
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both."""
        return self.alone(features), self.pair(features)


class OverlappingGreedy(OverlappingBlocks, LocalClassification):
    """K blocks in K − 1 overlapping pairs, each with a classifier.

    Args:
        network: the network, a class from ``models.networks``.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        num_blocks: K, at least 2.
        cut: where to cut.
        head: heads of blocks 2 … K − 1, two of each.
        alone_weight: of the losses of blocks alone; 0: they have none, as in LoCo.
        pair_weight: of the losses of pairs.
        training: output_loss, optimizer and the other arguments of :class:`LocalClassification` and its base.

    Raises:
        NetworkError: the network cannot be cut as asked; a head does not fit the features.
        UsageError: one block, sequential training, or frozen blocks.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        num_blocks: int = 4,
        cut: Cut = Cut(),
        head: HeadCallable = AuxHead,
        alone_weight: NonNegativeFloat = 0.001,
        pair_weight: PositiveFloat = 0.999,
        **training: Any,
    ) -> None:
        def make_head(shape: tuple[int, ...]) -> nn.Module:
            pair = head(shape, num_classes)
            return TwoHeads(head(shape, num_classes), pair) if alone_weight else pair

        chain = build_chain(network, image_shape, num_classes)
        blocks = cut_chain(chain, num_blocks, cut, make_head)
        inner = [make_head(shape) for shape in block_shapes(chain, blocks)[1:-1]]
        heads = [nn.Sequential(), *inner, chain.classifier][-num_blocks:]
        super().__init__(network, chain, num_classes, blocks, heads, **training)
        self.require_pairs("OverlappingGreedy")
        self.alone_weight, self.pair_weight = alone_weight, pair_weight

    @override
    def overlapping_loss(
        self, k: int, alone: Sequence[Tensor], pair: Sequence[Tensor], batch: LabelledImages
    ) -> Tensor:
        """Both losses, weighted."""
        [mine], [ours], heads = alone, pair, self.heads[k]
        one, other = (heads.alone, heads.pair) if isinstance(heads, TwoHeads) else (heads, heads)
        own = self.alone_weight * self.loss_of_logits(k, one(mine), batch) if self.alone_weight else 0.0
        return own + self.pair_weight * self.loss_of_logits(k, other(ours), batch)

    @override
    def block_prediction(self, k: int, features: Tensor) -> Tensor | None:
        """Logits of the pair that ends with block k; the first block ends none."""
        head = self.heads[k]
        return None if k == 0 else head.pair(features) if isinstance(head, TwoHeads) else head(features)

    @property
    @override
    def passes_of_last_block(self) -> int:
        return 2 if self.alone_weight else 1
