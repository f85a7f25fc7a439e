"""Heads of self-supervised blocks: pooling heads (feature maps → vectors), then a projector (→ embeddings).

S. A. Siddiqui, D. Krueger, Y. LeCun, S. Deny, "Blockwise Self-Supervised Learning at Scale", TMLR 2024,
compares three pooling heads: global (GSP), local (LSP) and, the best, a 1×1 convolution that expands the
channels before global pooling (CbE + GSP).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from torch.func import functional_call

from models.networks.chain import NetworkError
from models.networks.heads.classifiers import Head
from models.networks.layers.pooling import GlobalAveragePool
from models.networks.memory.profile import on_meta


class PoolingHead(nn.Module):
    """Base: feature maps ``(B, C, H, W)`` → vectors ``(B, out_features)``.

    Args:
        feature_shape: ``(C, H, W)`` of one image.
        out_features: width of the vectors.

    Raises:
        NetworkError: the features are no maps.
    """

    def __init__(self, feature_shape: tuple[int, ...], out_features: int) -> None:
        super().__init__()
        if len(feature_shape) != 3:
            raise NetworkError(
                f"{type(self).__name__} pools feature maps (C, H, W), but this block hands on vectors "
                f"{tuple(feature_shape)}. Use a convolutional network."
            )
        self.out_features = out_features


PoolingCallable = Callable[[tuple[int, ...], int], PoolingHead]
"""(feature shape, expansion width E) → pooling head."""


class GlobalPooling(PoolingHead):
    """GSP: the mean over all positions, C wide whatever E is.

    Args:
        feature_shape: ``(C, H, W)``.
        expand_dim: E; not used.
    """

    def __init__(self, feature_shape: tuple[int, ...], expand_dim: int) -> None:
        super().__init__(feature_shape, feature_shape[0])
        self.pool = GlobalAveragePool()

    def forward(self, x: Tensor) -> Tensor:
        """Pool."""
        return self.pool(x)


class LocalPooling(PoolingHead):
    """LSP: the mean within each bin of a grid, all bins concatenated to E values.

    The grid has E / C bins in as square a shape as they allow, wider than high: (2, 4), (2, 2), (1, 2), (1, 1)
    for the stages of a ResNet with E the last stage's width. The published grid is not known.

    Args:
        feature_shape: ``(C, H, W)``.
        expand_dim: E.

    Raises:
        NetworkError: C does not divide E, or the map has fewer rows or columns than the grid.
    """

    def __init__(self, feature_shape: tuple[int, ...], expand_dim: int) -> None:
        super().__init__(feature_shape, expand_dim)
        channels, height, width = feature_shape
        bins, rest = divmod(expand_dim, channels)
        rows = max((r for r in range(1, bins + 1) if bins % r == 0 and r * r <= bins), default=1)
        if rest or rows > height or bins // rows > width:
            raise NetworkError(
                f"LocalPooling makes expand_dim = {expand_dim} of {channels} channels on {height}×{width} positions in "
                "a grid of expand_dim / channels bins: choose a multiple of the channels that is small enough."
            )
        self.pool = nn.AdaptiveAvgPool2d((rows, bins // rows))

    def forward(self, x: Tensor) -> Tensor:
        """Pool."""
        return self.pool(x).flatten(1)


class ConvExpansion(PoolingHead):
    """CbE + GSP: convolution C → E without bias, BatchNorm, ReLU, mean over all positions.

    The expanded map is the largest tensor of its block (section 12 of the method sheet: 6.4 M elements an
    image in block 1 of ResNet-50, whose own convolutions make 5.2 M). It is therefore never kept: BatchNorm's
    mean and variance of a 1×1 convolution follow from the mean μ and covariance S of its input (W μ and
    diag(W S Wᵀ)), after which expansion, ReLU and pooling run piece by piece, and once more in the backward
    pass. The result is the plain module's.

    Args:
        feature_shape: ``(C, H, W)``.
        expand_dim: E.
        kernel: side of the convolution, odd.
        piece_mib: most of the expanded map that exists at one time, in MiB; small pieces stay in a CPU's cache.
            A map that is no larger, or does not expand (E ≤ C), is kept. None keeps any, as the published code does.

    Raises:
        NetworkError: a kernel other than 1 that is to run in pieces, or an even one.
    """

    def __init__(
        self, feature_shape: tuple[int, ...], expand_dim: int, kernel: int = 1, piece_mib: float | None = 8
    ) -> None:
        super().__init__(feature_shape, expand_dim)
        if kernel % 2 == 0:
            raise NetworkError(f"The kernel of ConvExpansion is odd, not {kernel}.")
        if kernel > 1 and piece_mib is not None:
            raise NetworkError(
                f"Only a 1×1 expansion runs in pieces: set piece_mib to null to keep the {kernel}×{kernel} one whole."
            )
        self.conv = nn.Conv2d(feature_shape[0], expand_dim, kernel, padding=kernel // 2, bias=False)
        self.bn, self.relu, self.pool = nn.BatchNorm2d(expand_dim), nn.ReLU(inplace=True), GlobalAveragePool()
        self.piece_mib = piece_mib

    def forward(self, x: Tensor) -> Tensor:
        """Expand and pool."""
        images = self._images_per_piece(x)
        if len(x) <= images or not self.training:
            return self.pool(self.relu(self.bn(self.conv(x))))
        with full_precision(x):  # a variance from second moments needs the digits
            weight, bias = self._folded(x)
        return _ExpandAndPool.apply(x, weight.to(x.dtype), bias.to(x.dtype), images)

    def _images_per_piece(self, x: Tensor) -> int:
        if self.piece_mib is None or self.out_features <= x.shape[1]:
            return len(x)
        expanded_image = x[0, 0].numel() * self.out_features * x.element_size()
        return max(int(self.piece_mib * 2**20) // expanded_image, 1)

    def _folded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weight ``(E, C)`` and bias ``(E,)`` of convolution and BatchNorm in one; updates its running statistics."""
        kernel, count = self.conv.weight.flatten(1), x.numel() // x.shape[1]
        mean, second = (moment.to(kernel.dtype) for moment in _Moments.apply(x))
        covariance = second - torch.outer(mean, mean)
        out_mean, out_variance = kernel @ mean, ((kernel @ covariance) * kernel).sum(dim=1).clamp_min(0)
        self._track(out_mean.detach(), out_variance.detach() * (count / max(count - 1, 1)))
        scale = self.bn.weight * torch.rsqrt(out_variance + self.bn.eps)
        return scale.unsqueeze(1) * kernel, self.bn.bias - scale * out_mean

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.bn.track_running_stats:
            self.bn.running_mean.lerp_(mean, self.bn.momentum)
            self.bn.running_var.lerp_(unbiased_variance, self.bn.momentum)
            self.bn.num_batches_tracked.add_(1)


def full_precision(x: Tensor) -> AbstractContextManager:
    """Autocast is off within, on the tensor's device."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _rows(x: Tensor) -> Tensor:
    """Maps ``(B, C, H, W)`` as one row per position, ``(B·H·W, C)``; a view in channels-last memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class _Moments(torch.autograd.Function):
    """Mean ``(C,)`` and second moment ``(C, C)`` of the channels over images and positions; nothing but x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        rows = _rows(x).to(torch.promote_types(x.dtype, torch.float32))
        return rows.mean(dim=0), rows.T @ rows / len(rows)

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_second: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        rows = _rows(x).to(grad_mean.dtype)
        grad = torch.addmm(grad_mean, rows, grad_second + grad_second.T) / len(rows)
        return grad.to(x.dtype).view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


class _ExpandAndPool(torch.autograd.Function):
    """mean over positions of ReLU(W x + b), for ``images`` images at a time; nothing but x, W and b is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, images: int) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.images = images
        return torch.cat([_expanded(piece, weight, bias).relu_().mean(dim=1) for piece in x.split(images)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, bias = ctx.saved_tensors
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        grad_pieces = []
        for piece, grad_piece in zip(x.split(ctx.images), grad.split(ctx.images), strict=True):
            count, _, height, width = piece.shape
            passes = _expanded(piece, weight, bias).gt_(0)  # 1 where ReLU lets through
            grad_map = passes.mul_(grad_piece.unsqueeze(1) / (height * width)).flatten(0, 1)
            grad_weight.addmm_(grad_map.T, _rows(piece))
            grad_bias += grad_map.sum(dim=0)
            grad_pieces.append((grad_map @ weight).view(count, height, width, -1).permute(0, 3, 1, 2))
        return torch.cat(grad_pieces), grad_weight, grad_bias, None


def _expanded(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W x + b at every position: ``(B, H·W, E)``."""
    return torch.addmm(bias, _rows(x), weight.T).view(len(x), -1, len(bias))


class BiasFreeProjector(ProjectionHead):
    """Projector of blockwise Barlow Twins: linear layers without bias, BatchNorm and ReLU between them.

    lightly's heads have the same shape with a bias on the last layer; name one of them instead where that is
    wanted (``lightly.models.modules.SimCLRProjectionHead``, ``…BarlowTwinsProjectionHead``, ``…VICRegProjectionHead``).

    Args:
        input_dim: width of the pooled features.
        widths: outputs of the layers; published: three of 8192 (151.03 M parameters on 2048 inputs).
    """

    def __init__(self, input_dim: int, widths: Sequence[int] = (8192, 8192, 8192)) -> None:
        *inner, last = pairwise([input_dim, *widths])
        hidden = [(a, b, nn.BatchNorm1d(b), nn.ReLU(inplace=True), False) for a, b in inner]
        super().__init__([*hidden, (*last, None, None, False)])


ProjectorCallable = Callable[[int], nn.Module]
"""Width of the pooled features → projector."""


class EmbeddingHead(nn.Sequential):
    """A pooling head, then a projector: ``(B, C, H, W)`` → embeddings ``(B, D)``.

    Args:
        pooling: makes the pooling head.
        projector: makes the projector.
        feature_shape: ``(C, H, W)``.
        expand_dim: E.

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
        head = pooling(feature_shape, expand_dim)
        super().__init__(OrderedDict(pooling=head, projector=projector(head.out_features)))
        _require_embeddings(self.projector, head.out_features)


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
    """Head of the supervised counterpart: CbE + GSP, then one linear layer to the logits ``(B, num_classes)``.

    Args:
        feature_shape: ``(C, H, W)``.
        num_classes: width of the output.
        expand_dim: E.
    """

    def __init__(self, feature_shape: tuple[int, ...], num_classes: int, expand_dim: int = 512) -> None:
        pooling = ConvExpansion(feature_shape, expand_dim)
        super().__init__(OrderedDict(pooling=pooling, classifier=nn.Linear(expand_dim, num_classes)))
