"""LoCo: self-supervised blocks that overlap, so that a gradient reaches one block further down.

Y. Xiong, M. Ren, R. Urtasun, "LoCo: Local Contrastive Representation Learning", NeurIPS 2020.
Unit k is blocks k and k + 1: every block but the first and the last learns as the upper half of one unit and as
the lower half of the next, which lets neighbouring losses negotiate (``models/overlapping.py``).

The paper's deeper decoders (further residual blocks in a head) are not built.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from losses.errors import UsageError
from models.method import LabelledImages
from models.methods.blockwise_ssl import BlockwiseSSL
from models.overlapping import OverlappingBlocks


class LoCo(OverlappingBlocks, BlockwiseSSL):
    """K overlapping blocks, K − 1 losses: on the outputs of blocks 2 … K, each reaching two blocks down.

    Args:
        num_blocks: K, at least 2.
        options: all else, as in :class:`BlockwiseSSL`.

    Raises:
        UsageError: one block, sequential training, frozen blocks, or a difficulty that changes the views.
    """

    def __init__(self, num_blocks: int = 4, **options: Any) -> None:
        super().__init__(num_blocks=num_blocks, **options)
        self.require_pairs("LoCo")
        if self.difficulty.views:
            raise UsageError("LoCo's blocks learn together, on the same views: leave difficulty.views out.")
        self.heads[0] = nn.Sequential()  # the first block has no loss of its own

    @override
    def entering(self, batch: LabelledImages) -> Sequence[Tensor]:
        """The two views."""
        [pair] = self.step_input(batch)[1].values()
        return pair

    @override
    def through(self, k: int, x: Sequence[Tensor]) -> Sequence[Tensor]:
        a, b = x
        return self._features(k, (a, b))

    @override
    def overlapping_loss(
        self, k: int, alone: Sequence[Tensor], pair: Sequence[Tensor], batch: LabelledImages
    ) -> Tensor:
        """The unit's contrastive loss; no block has one alone."""
        a, b = pair
        return self.local_loss(k, {self._strengths[k]: (a, b)}, batch)
