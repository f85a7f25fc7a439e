"""The published way to train neuron groups: a loop over heads, each with a copy of the features.

Slow and simple: what the vectorised heads are compared with, in tests for equality and in
``tests/bench_neuron_groups.py`` for speed.
"""

import torch
from torch import nn
from torch.nn import functional as F


def own_slice_live(features, group, groups):
    """All channels; gradient goes into slice ``group`` only."""
    slices = features.chunk(groups, dim=1)
    return torch.cat([s if g == group else s.detach() for g, s in enumerate(slices)], dim=1)


def diversity(group_logits, labels, temperature):
    """Mean pairwise cosine of the non-target distributions, pair by pair."""
    rows = torch.arange(len(labels))
    directions = []
    for logits in group_logits:
        p = F.softmax(logits / temperature, dim=1).clone()
        p[rows, labels] = 0
        p = p / (p.sum(dim=1, keepdim=True) + 1e-8)
        directions.append(p / torch.sqrt((p * p).sum(dim=1, keepdim=True) + 1e-8))
    total = 0.0
    for g, one in enumerate(directions):
        for h, other in enumerate(directions):
            if g != h:
                total = total + (one * other).sum()
    groups = len(group_logits)
    return total / (len(labels) * groups * (groups - 1)) if groups > 1 else torch.zeros(())


class PublishedLoop(nn.Module):
    """Grouped blocks, one separate head per (block, group), a final head.

    Args:
        blocks: blocks whose convolutions are grouped.
        heads: heads[k][g].
        final: head on the detached features of the last block.
        weight: λ of the diversity loss.
        temperature: its T.
    """

    def __init__(self, blocks, heads, final, weight=0.5, temperature=3.0):
        super().__init__()
        self.blocks, self.heads, self.final = blocks, heads, final
        self.weight, self.temperature = weight, temperature

    def logits(self, k, features):
        heads = self.heads[k]
        return [head(own_slice_live(features, g, len(heads))) for g, head in enumerate(heads)]

    def step(self, images, labels):
        """One mini-batch: backward of every block's loss, then of the final head's."""
        x = images
        for k, block in enumerate(self.blocks):
            features = block(x)
            group_logits = self.logits(k, features)
            loss = sum(F.cross_entropy(z, labels) for z in group_logits)
            if len(group_logits) > 1:
                loss = loss + self.weight * diversity(group_logits, labels, self.temperature)
            loss.backward()
            x = features.detach()
        F.cross_entropy(self.final(x), labels).backward()
