"""Heads of self-supervised blocks: a pooling head (feature maps → vectors), then a projector (→ embeddings)."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from lightly.models.modules.heads import ProjectionHead
from torch import nn
from torch.func import functional_call

from losses.errors import NetworkError
from models.networks.heads.classifiers import Head
from models.networks.heads.expansion import ConvExpansion
from models.networks.heads.pooling import PoolingCallable
from models.networks.memory.profile import on_meta
from ranges import PositiveInt


class BiasFreeProjector(ProjectionHead):
    """Projector of blockwise Barlow Twins: linear layers without bias, BatchNorm and ReLU between them.

    lightly's heads have the same shape with a bias on the last layer; name one of them instead where that is
    wanted (``lightly.models.modules.SimCLRProjectionHead``, ``…BarlowTwinsProjectionHead``, ``…VICRegProjectionHead``).

    Args:
        input_dim: width of the pooled features.
        widths: outputs of the layers; published: three of 8192 (151.03 M parameters on 2048 inputs).
    """

    def __init__(self, input_dim: int, widths: Sequence[PositiveInt] = (8192, 8192, 8192)) -> None:
        *inner, last = pairwise([input_dim, *widths])
        hidden = [(a, b, nn.BatchNorm1d(b), nn.ReLU(inplace=True), False) for a, b in inner]
        super().__init__([*hidden, (*last, None, None, False)])


ProjectorCallable = Callable[[int], nn.Module]
"""Width of the pooled features → projector."""


class EmbeddingHead(nn.Sequential):
    """A pooling head, then a projector: ``(B, C, H, W)`` → embeddings ``(B, D)``.

    Raises:
        NetworkError: the projector does not make embeddings of vectors.
    """

    def __init__(
        self,
        pooling: PoolingCallable,
        projector: ProjectorCallable,
        feature_shape: tuple[int, ...],
        expand_dim: int,
    ) -> None:
        pool = pooling(feature_shape, expand_dim)
        project = projector(pool.out_features)
        super().__init__(OrderedDict(pooling=pool, projector=project))
        _require_embeddings(project, pool.out_features)


@torch.no_grad()
def _require_embeddings(projector: nn.Module, width: int) -> None:
    """Try the projector on two vectors."""
    state = on_meta(projector)
    vectors = torch.empty(2, width, device="meta")
    try:
        shape: object = tuple(functional_call(projector, state, (vectors,)).shape)
    except Exception as fault:  # of whatever kind: the projector may be anybody's, and is told in one sentence
        shape = f"fails: {fault}"
    if not (isinstance(shape, tuple) and len(shape) == 2 and shape[0] == 2 and shape[1] > 0):
        raise NetworkError(
            f"The projector {type(projector).__name__} must turn vectors (B, {width}) into embeddings (B, D); it gives "
            f"{shape} for B = 2. Use models.networks.BiasFreeProjector or one of lightly's projection heads."
        )


class ExpandedClassifier(Head):
    """Head of the supervised counterpart: CbE + GSP to ``expand_dim`` features, then one linear layer to the logits."""

    def __init__(self, feature_shape: tuple[int, ...], num_classes: int, expand_dim: PositiveInt = 512) -> None:
        pooling = ConvExpansion(feature_shape, expand_dim)
        super().__init__(OrderedDict(pooling=pooling, classifier=nn.Linear(expand_dim, num_classes)))
