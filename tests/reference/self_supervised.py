"""Self-supervised losses as published, without any library of theirs."""

import torch
from torch.nn import functional as F


def standardised(z):
    return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()  # BatchNorm without affine parameters


def barlow_twins(a, b, off_diagonal):
    c = standardised(a).T @ standardised(b) / len(a)
    eye = torch.eye(len(c), dtype=c.dtype)
    return ((c - 1) * eye).square().sum() + off_diagonal * (c * (1 - eye)).square().sum()


def nt_xent(a, b, temperature, choose=lambda i, others: others):
    """``choose``: view, and all that are not of its image → its negatives."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    losses = []
    for i in range(len(z)):
        partner = (i + len(a)) % len(z)
        others = [j for j in range(len(z)) if j not in (i, partner)]
        terms = torch.stack([torch.exp(z[i] @ z[j] / temperature) for j in (partner, *choose(i, others))])
        losses.append(-torch.log(terms[0] / terms.sum()))
    return torch.stack(losses).mean()


def vicreg(a, b):
    """Bardes et al., 2022: 25 s + 25 (v(a) + v(b)) / 2 + c(a) + c(b), as lightly halves the variance term."""

    def variance(z):
        return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()

    def covariance(z):
        c = torch.cov(z.T)
        return (c - c.diag().diag()).square().sum() / z.shape[1]

    return 25 * F.mse_loss(a, b) + 12.5 * (variance(a) + variance(b)) + covariance(a) + covariance(b)
