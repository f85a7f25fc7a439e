"""The published ResNet-32 of neuron groups, and its training, small and obvious: thin modules in loops over groups.

GN-DGL (Patel et al., 2023; method sheet, sections 3 to 7). Nothing is a grouped convolution, nothing is stacked.
Weights are not drawn as published: they are to be copied.
"""

from functools import partial
from itertools import product

import torch
from torch import nn
from torch.nn import functional as F

from experiments.studies.published_loop import diversity

PLACES = [(0, 0), *product((1, 2, 3), range(5))]
"""(stage, block) of every unit; (0, 0) is the stem."""

ENDS = {
    1: [(3, 4)],
    2: [(2, 1), (3, 4)],
    4: [(1, 2), (2, 1), (3, 0), (3, 4)],
    8: [(1, 0), (1, 2), (1, 4), (2, 1), (2, 3), (3, 0), (3, 2), (3, 4)],
    16: PLACES,
}
"""K → after which of them the network is cut."""


class ThinStem(nn.Module):
    """One group's filters on the whole image."""

    def __init__(self, channels, out):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)

    def forward(self, read, own):
        return F.relu(self.bn(self.conv(read)))


class ThinBlock(nn.Module):
    """One group's part of a basic block: its convolutions read what they may, an identity shortcut its own channels."""

    def __init__(self, channels, out, stride, shortcut):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        conv = nn.Conv2d(channels, out, 1, stride, bias=False)
        self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out)) if shortcut else None

    def forward(self, read, own):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(read)))))
        return F.relu(y + (own if self.downsample is None else self.downsample(read)))


class Head(nn.Module):
    """1c2f."""

    def __init__(self, channels, hidden, classes):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.first, self.second = nn.Linear(2 * channels, hidden), nn.Linear(hidden, classes)

    def forward(self, x):
        y = F.relu(self.bn(self.conv(x))).mean(dim=(2, 3))
        return self.second(F.relu(self.first(y)))


class PublishedNetwork(nn.Module):
    """``units[name][g]`` is group g's part of a unit, ``heads[name][g]`` the head behind it, ``final`` the last."""

    def __init__(self, num_blocks, groups, widths, hidden, classes, weight, temperature):
        super().__init__()
        self.groups, self.weight, self.temperature = groups, weight, temperature
        self.units, self.heads = nn.ModuleDict(), nn.ModuleDict()
        channels, cut = 3, True  # every group reads the whole image
        for stage, block in PLACES:
            name, out = f"layer{stage}_{block}" if stage else "stem", widths[stage]
            read = channels if cut else channels // groups  # behind a cut: what all groups made
            stride = 2 if stage > 1 and block == 0 else 1
            shortcut = stride == 2 or channels != out
            kind = partial(ThinBlock, stride=stride, shortcut=shortcut) if stage else ThinStem
            self.units[name] = nn.ModuleList(kind(read, out // groups) for _ in range(groups))
            channels, cut = out, (stage, block) in ENDS[num_blocks]
            if cut:
                self.heads[name] = nn.ModuleList(Head(channels, hidden, classes) for _ in range(groups))
        self.final = Head(channels, hidden, classes)

    def predictions(self, images):
        """Logits of all groups of one module after the other, then of the final head alone; computed when asked for."""
        read, own = [images] * self.groups, [None] * self.groups
        for name, parts in self.units.items():
            own = [part(*seen) for part, *seen in zip(parts, read, own, strict=True)]
            read = own
            if name in self.heads:
                logits = []
                for g, head in enumerate(self.heads[name]):
                    live = [slice_ if h == g else slice_.detach() for h, slice_ in enumerate(own)]
                    logits.append(head(torch.cat(live, dim=1)))
                yield logits
                own = [slice_.detach() for slice_ in own]
                read = [torch.cat(own, dim=1)] * self.groups
        yield [self.final(read[0])]

    def backward(self, images, labels):
        """Gradients of a mini-batch: those of each module's loss before the next module is computed."""
        for logits in self.predictions(images):
            loss = sum(F.cross_entropy(z, labels) for z in logits)
            if len(logits) > 1:
                loss = loss + self.weight * diversity(logits, labels, self.temperature)
            loss.backward()
