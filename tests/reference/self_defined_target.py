"""Self-defined targets image by image and output by output, as the paper's released code computes them."""

import torch


class SlowTargets:
    """One epoch of winner-take-all targets with homeostasis, in plain Python."""

    def __init__(self, outputs, winners, rate, dropout=0.0, smoothing=0.0, memory=None):
        self.outputs, self.winners, self.rate = outputs, winners, rate
        self.dropout, self.smoothing, self.memory = dropout, smoothing, memory
        self.threshold, self.mean = [0.0] * outputs, [0.0] * outputs

    def __call__(self, outputs, mask):
        targets = [self._of_image(y, m) for y, m in zip(outputs.tolist(), mask.tolist(), strict=True)]
        usual = (1 - self.dropout) * self.winners / self.outputs
        for j in range(self.outputs):
            won = sum(target[j] for target in targets) / len(targets)
            if self.memory is not None:
                won = self.mean[j] = (1 - self.memory) * self.mean[j] + self.memory * won
            self.threshold[j] += self.rate * (won - usual)
        return torch.tensor(targets)

    def _of_image(self, y, m):
        order = sorted(range(self.outputs), key=lambda j: y[j] - self.threshold[j], reverse=True)
        target = [float(j in order[: self.winners]) for j in range(self.outputs)]
        share = self.smoothing * self.winners / self.outputs
        return [keep * ((1 - self.smoothing) * one + share) for keep, one in zip(m, target, strict=True)]
