"""The weighted mean of the blocks' probabilities, number by number."""

import math

import torch


def slow_ensemble(logits):
    count, (rows, classes) = len(logits), logits[0].shape
    result = [[0.0] * classes for _ in range(rows)]
    for k, block in enumerate(logits):
        for b, row in enumerate(block.tolist()):
            total = sum(math.exp(z) for z in row)
            for c, z in enumerate(row):
                result[b][c] += 2**k / (2**count - 1) * math.exp(z) / total
    return torch.tensor(result, dtype=torch.float64)
