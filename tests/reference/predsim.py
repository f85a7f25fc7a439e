"""predsim as its published code trains it: layer by layer within a step, losses and all written out.

Other than here, a layer has a bias before its BatchNorm, and the classifier's loss has the weight 1 − β.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Adam


def similarity(x):
    """Cosines between the centred rows of a batch; of maps, between their channels' standard deviations."""
    x = x.flatten(2).std(dim=2) if x.dim() == 4 else x
    centred = x - x.mean(dim=1, keepdim=True)
    rows = centred / (1e-8 + centred.square().sum(dim=1, keepdim=True).sqrt())
    return (rows @ rows.T).clamp(-1, 1)


class PublishedLayer(nn.Module):
    """A layer with its losses and its optimizer.

    Args:
        encoder: convolution or linear map, with bias.
        norm: BatchNorm.
        comparison: what is compared: a 3×3 convolution or a linear map of the layer's output.
        prediction: linear map of the output.
        pool: rows and columns of the patches over which maps are averaged first; None of vectors.
        beta: β.
    """

    def __init__(self, encoder, norm, comparison, prediction, pool, beta):
        super().__init__()
        self.encoder, self.norm, self.comparison, self.prediction = encoder, norm, comparison, prediction
        self.pool, self.beta = pool, beta
        self.optimizer = Adam(self.parameters(), lr=5e-4)

    def step(self, x, labels, classes):
        """Learn from a batch; the layer's output, from before it learned, detached."""
        x = x if self.pool else x.flatten(1)
        h = F.leaky_relu(self.norm(self.encoder(x)), 0.01)
        pooled = F.avg_pool2d(h, self.pool) if self.pool else h
        loss = (1 - self.beta) * F.cross_entropy(self.prediction(pooled.flatten(1)), labels)
        targets = similarity(torch.eye(classes, dtype=h.dtype)[labels])
        loss = loss + self.beta * F.mse_loss(similarity(self.comparison(h)), targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return h.detach()
