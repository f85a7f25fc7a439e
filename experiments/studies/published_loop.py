"""The published way to train neuron groups: a loop over heads, each with a copy of the features.

Slow and simple: what the vectorised heads are compared with, in tests for equality, in ``neuron_groups.py`` for speed.
"""

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def own_slice_live(features: Tensor, group: int, groups: int) -> Tensor:
    """All channels; gradient goes into slice ``group`` only."""
    slices = features.chunk(groups, dim=1)
    return torch.cat([s if g == group else s.detach() for g, s in enumerate(slices)], dim=1)


def diversity(group_logits: Sequence[Tensor], labels: Tensor, temperature: float) -> Tensor:
    """Mean pairwise cosine of the non-target distributions of two or more groups, pair by pair."""
    rows = torch.arange(len(labels), device=labels.device)
    directions = []
    for logits in group_logits:
        p = F.softmax(logits / temperature, dim=1).clone()
        p[rows, labels] = 0
        p = p / (p.sum(dim=1, keepdim=True) + 1e-8)
        directions.append(p / torch.sqrt((p * p).sum(dim=1, keepdim=True) + 1e-8))
    cosines = [(one * other).sum() / len(labels) for one, other in permutations(directions, 2)]
    return torch.stack(cosines).mean()


class PublishedLoop(nn.Module):
    """Grouped blocks, one separate head per (block, group), a final head.

    Args:
        blocks: blocks whose convolutions are grouped.
        heads: ``heads[k][g]``.
        final: head on the detached features of the last block.
        weight: λ of the diversity loss.
        temperature: its T.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        heads: Sequence[Sequence[nn.Module]],
        final: nn.Module,
        weight: float = 0.5,
        temperature: float = 3.0,
    ) -> None:
        super().__init__()
        self.blocks, self.final = nn.ModuleList(blocks), final
        self.heads = nn.ModuleList(nn.ModuleList(group_heads) for group_heads in heads)
        self.weight, self.temperature = weight, temperature

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Gradients of one mini-batch: backward of every block's loss, then of the final head's."""
        x = images
        for block, block_heads in zip(self.blocks, self.heads, strict=True):
            features, heads = block(x), list(block_heads.children())
            logits = [head(own_slice_live(features, g, len(heads))) for g, head in enumerate(heads)]
            loss = torch.stack([F.cross_entropy(z, labels) for z in logits]).sum()
            if len(heads) > 1:
                loss = loss + self.weight * diversity(logits, labels, self.temperature)
            loss.backward()
            x = features.detach()
        F.cross_entropy(self.final(x), labels).backward()
