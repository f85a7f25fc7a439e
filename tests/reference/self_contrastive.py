"""Self-contrastive Forward-Forward as its released code does it: pairs are long vectors, each half has the weights."""

import math

import torch


def standardise(v):
    """One vector, in plain Python."""
    mean = sum(v) / len(v)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in v) / (len(v) - 1))
    return [(x - mean) / deviation for x in v]


def each_standardised(rows):
    flat = rows.flatten(1)
    return torch.tensor([standardise(row) for row in flat.tolist()], dtype=rows.dtype).view_as(rows)


def triangle(z):
    return torch.stack([(row - sum(row.tolist()) / len(row)).clamp(min=0) for row in z])


class SlowLayers:
    """Fully connected layers, trained on every batch; the first pairs, or all do."""

    def __init__(self, weights, rules, pairing, lr):
        self.weights = [(w.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()) for w, b in weights]
        self.rules, self.pairing, self.lr = rules, pairing, lr

    def step(self, first, second, shifts, learners):
        """One batch of views ``(B, d)``; ``shifts``: of each layer that pairs."""
        x, x_neg = first, None
        for k, (w, b) in enumerate(self.weights):
            if k == 0 or self.pairing == "all":
                count, other = len(x), second if k == 0 else x
                shift = shifts.pop(0)
                x, x_neg = (
                    torch.cat([each_standardised(x), each_standardised(other[rows])], dim=1)
                    for rows in (list(range(count)), [(i + shift) % count for i in range(count)])
                )
                z, z_neg = (v @ torch.cat([w, w], dim=1).T + 2 * b for v in (x, x_neg))
            else:
                z, z_neg = (each_standardised(v) @ w.T + b for v in (x, x_neg))
            if k in learners:
                above, below, penalty = self.rules[k]
                good, bad = (torch.stack([row.clamp(min=0).pow(2).mean() for row in v]) for v in (z, z_neg))
                loss = torch.log(1 + torch.exp(above - good)).mean() + torch.log(1 + torch.exp(bad - below)).mean()
                loss = loss + penalty * good.abs().mean()
                gradients = torch.autograd.grad(loss, (w, b))
                with torch.no_grad():
                    for weight, gradient in zip((w, b), gradients, strict=True):
                        weight -= self.lr * gradient
            x, x_neg = triangle(z).detach(), triangle(z_neg).detach()
