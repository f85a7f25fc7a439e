"""Cells in plain loops: layer normalisation by hand, and two optimizers where there are two losses."""

import torch
from torch.nn import functional as F
from torch.optim import AdamW


def normalised(z):
    """Every sample's features minus their mean, over their standard deviation."""
    flat = z.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    return (centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()).view_as(z)


class SlowCell:
    """Linear layer, ReLU, normalisation, linear decoder; perhaps a discriminator with an optimizer of its own.

    Args:
        weights: of the encoder, the decoder and, if there is one, the discriminator, in the order of its layers.
        lr: of encoder and decoder.
        adversarial: weights of the adversarial loss and of the reconstruction.
    """

    def __init__(self, weights, lr, adversarial=None, rate=None, betas=None):
        weights = [weight.detach().clone().requires_grad_() for weight in weights]
        self.generator, self.discriminator, self.adversarial = weights[:4], weights[4:], adversarial
        self.optimizers = [AdamW(self.generator, lr=lr)]
        if adversarial:
            self.optimizers.append(AdamW(self.discriminator, lr=rate, betas=betas))

    def encode(self, x):
        return normalised(F.linear(x, *self.generator[:2]).relu())

    def told(self, x, fixed=False):
        w1, b1, w2, b2 = (weight.detach() if fixed else weight for weight in self.discriminator)
        return F.linear(F.leaky_relu(F.linear(x, w1, b1), 0.2), w2, b2)

    def learn(self, x, noise=0.0):
        """One step on ``x (B, d)``; what the next cell reads, made by the weights before the step."""
        passed_on = self.encode(x).detach()
        rebuilt = F.linear(self.encode(x + noise), *self.generator[2:])
        loss, entropy = (rebuilt - x).square().mean(), F.binary_cross_entropy_with_logits
        if self.adversarial:
            weight, reconstruction = self.adversarial
            fooled = self.told(rebuilt, fixed=True)
            loss = reconstruction * loss + weight * entropy(fooled, torch.ones_like(fooled))
            real, fakes = self.told(x), self.told(rebuilt.detach())
            judged = entropy(real, torch.ones_like(real)) + entropy(fakes, torch.zeros_like(fakes))
            judged.backward()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return passed_on

    @property
    def weights(self):
        return [*self.generator, *self.discriminator]
