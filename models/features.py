"""Features of blocks as probes read them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.networks.layers.pooling import GlobalAveragePool


def pooled(features: Tensor) -> Tensor:
    """Maps ``(B, C, H, W)`` averaged over positions; vectors ``(B, C)`` as they are."""
    return GlobalAveragePool()(features) if features.dim() == 4 else features


def concatenated(name: str, latents: Sequence[Tensor]) -> dict[str, Tensor]:
    """``<name>/all`` of features of several blocks ``(B, d)``, and of more than two ``<name>/all_but_first``."""
    kinds = {"all": latents, "all_but_first": latents[1:]}
    return {f"{name}/{kind}": torch.cat([*some], dim=1) for kind, some in kinds.items() if len(some) > 1}
