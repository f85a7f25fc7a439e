"""Blockwise Barlow Twins as published (Siddiqui et al., 2024): one forward pass a view, then all losses backward.

torchvision's ResNet, cut behind each stage, with the names of the released files. Slow and obvious; published settings
are the defaults, but for the widths.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet


def expand_and_pool(channels: int, width: int) -> nn.Sequential:
    """CbE + GSP: ``(B, C, H, W)`` → ``(B, E, 1, 1)``."""
    conv = nn.Conv2d(channels, width, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


def projector(inputs: int, width: int) -> nn.Sequential:
    """Three layers without bias."""
    first = [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    second = [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.Linear(width, width, bias=False))


class Backbone(ResNet):
    """ResNet without classifier, a pooling head behind each stage; ResNet-50 is published."""

    def __init__(
        self, expand_dim: int, block: type[nn.Module] = BasicBlock, depths: Sequence[int] = (2, 2, 2, 2)
    ) -> None:
        super().__init__(block, list(depths), zero_init_residual=True)
        self.fc = nn.Identity()
        for k, channels in enumerate((64, 128, 256, 512), start=1):
            setattr(self, f"pool_conv_block_{k}", expand_and_pool(channels * block.expansion, expand_dim))

    def pooled(self, x: Tensor, noise: Callable[[int, Tensor], Tensor]) -> list[Tensor]:
        """What each head makes of its stage's output with noise, of which the next stage reads a detached copy."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        outputs = []
        for k in range(1, 5):
            x = noise(k, getattr(self, f"layer{k}")(x))
            outputs.append(getattr(self, f"pool_conv_block_{k}")(x).flatten(1))
            x = x.detach()
        return outputs


def add_noise(x: Tensor, normal: Tensor, sigma: float = 0.25) -> Tensor:
    """``all``: in units of the deviation over all entries of the view (published with n − 1 of n entries)."""
    return x + sigma * normal * x.std(correction=0)


def barlow_twins(z_a: Tensor, z_b: Tensor, weight: float = 5.1e-3, scale: float = 0.024) -> Tensor:
    """scale · (Σ_i (C_ii − 1)² + weight · Σ_{i≠j} C_ij²), entry by entry of the correlation matrix C."""
    z_a, z_b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z_a, z_b))
    c = z_a.T @ z_b / len(z_a)
    same = torch.eye(len(c), dtype=torch.bool)
    return scale * ((c[same] - 1).square().sum() + weight * c[~same].square().sum())


class PublishedBlocks(nn.Module):
    """Backbone and four projectors, whose first weights are the same."""

    def __init__(self, expand_dim: int, width: int) -> None:
        super().__init__()
        self.backbone = Backbone(expand_dim)
        self.projectors = nn.ModuleList(projector(expand_dim, width) for _ in range(4))
        for other in self.projectors:
            other.load_state_dict(self.projectors[0].state_dict())

    def step(self, views: tuple[Tensor, Tensor], noise: Callable[[int, int, Tensor], Tensor]) -> list[Tensor]:
        """Losses of the four blocks; gradients of all. ``noise(view, block, features)`` adds it."""
        pooled = [self.backbone.pooled(x, lambda k, y, v=v: noise(v, k, y)) for v, x in enumerate(views)]
        losses = [barlow_twins(project(a), project(b)) for project, a, b in zip(self.projectors, *pooled, strict=True)]
        for loss in losses:
            loss.backward()
        return losses
