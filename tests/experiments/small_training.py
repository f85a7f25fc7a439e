"""A small classifier and its batches, for tests of what two processes send each other."""

import torch
from torch import nn

STEPS = 6


def network():
    """A perceptron, the same every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 10))


def batches():
    """Per step a batch of 32; each process takes every other image."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(STEPS, 32, 64, generator=generator)
    return list(zip(images, torch.randint(10, (STEPS, 32), generator=generator), strict=True))


def flat(model):
    """A copy of all its weights."""
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()
