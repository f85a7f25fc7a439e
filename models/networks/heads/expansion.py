"""The pooling head that expands the channels first, without ever keeping the expanded map."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from losses.errors import NetworkError
from losses.processes import mean_over_processes, process_count
from models.networks.heads.pooling import PoolingHead
from models.networks.layers.pooling import GlobalAveragePool
from ranges import PositiveFloat, PositiveInt


class ConvExpansion(PoolingHead):
    """CbE + GSP: convolution C → E without bias, BatchNorm, ReLU, mean over all positions.

    The expanded map is the largest tensor of its block (section 12 of the method sheet: 6.4 M elements an
    image in block 1 of ResNet-50, whose own convolutions make 5.2 M). It is therefore never kept: BatchNorm's
    mean and variance of a 1×1 convolution follow from the mean μ and covariance S of its input (W μ and
    diag(W S Wᵀ)), after which expansion, ReLU and pooling run piece by piece, and once more in the backward
    pass. The result is the plain module's.

    Args:
        kernel: side of the convolution, odd.
        piece_mib: most of the expanded map that exists at one time, in MiB; small pieces stay in a CPU's cache.
            A map that is no larger, or does not expand (E ≤ C), is kept, and that of a kernel wider than 1. None keeps
            any, as the published code does.

    Raises:
        NetworkError: an even kernel.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        expand_dim: int,
        kernel: PositiveInt = 1,
        piece_mib: PositiveFloat | None = 8,
    ) -> None:
        super().__init__(feature_shape, expand_dim)
        if kernel % 2 == 0:
            raise NetworkError(f"The kernel of ConvExpansion is odd, not {kernel}.")
        self.conv = nn.Conv2d(feature_shape[0], expand_dim, kernel, padding=kernel // 2, bias=False)
        self.bn, self.relu, self.pool = nn.BatchNorm2d(expand_dim), nn.ReLU(inplace=True), GlobalAveragePool()
        self.piece_mib = piece_mib if kernel == 1 else None

    @override
    def forward(self, x: Tensor) -> Tensor:
        images = self._images_per_piece(x)
        if len(x) <= images or not self.training:
            return self.pool(self.relu(self.bn(self.conv(x))))
        with full_precision(x):  # a variance from second moments needs the digits
            return _ExpandAndPool.apply(x, *self._folded(x), images)

    def _images_per_piece(self, x: Tensor) -> int:
        if self.piece_mib is None or self.out_features <= x.shape[1]:
            return len(x)
        expanded_image = x[0, 0].numel() * self.out_features * x.element_size()
        return max(int(self.piece_mib * 2**20) // expanded_image, 1)

    def _folded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Convolution and BatchNorm in one, W (x − c) + b: c ``(C,)``, W ``(E, C)``, b ``(E,)``. Updates statistics.

        c is the mean μ of x, in x's precision: of W μ, rounding a W that holds BatchNorm's scale would leave an offset
        in every channel (bfloat16: 1 to 4 % of the outputs' deviation). What c misses of μ is in b.
        """
        kernel, count = self.conv.weight.flatten(1), x.numel() // x.shape[1]  # (E, C)
        mean, second = (moment.to(kernel.dtype) for moment in _Moments.apply(x))  # (C,), (C, C)
        if isinstance(self.bn, nn.SyncBatchNorm):
            mean, second, count = mean_over_processes(mean), mean_over_processes(second), count * process_count()
        covariance = second - torch.outer(mean, mean)  # (C, C)
        out_mean, out_variance = kernel @ mean, ((kernel @ covariance) * kernel).sum(dim=1).clamp_min(0)  # (E,), (E,)
        self._track(out_mean.detach(), out_variance.detach() * (count / max(count - 1, 1)))
        scale = self.bn.weight * torch.rsqrt(out_variance + self.bn.eps)  # (E,)
        weight, centre = scale.unsqueeze(1) * kernel, mean.detach().to(x.dtype)
        return centre, weight, self.bn.bias - weight @ (mean - centre)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.bn.track_running_stats:
            statistics, momentum = dict(self.bn.named_buffers()), self.bn.momentum or 0.0
            statistics["running_mean"].lerp_(mean, momentum)
            statistics["running_var"].lerp_(unbiased_variance, momentum)
            statistics["num_batches_tracked"].add_(1)


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
        rows = _rows(x).to(torch.promote_types(x.dtype, torch.float32))  # (B·H·W, C)
        return rows.mean(dim=0), rows.T @ rows / len(rows)

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_second: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        rows = _rows(x).to(grad_mean.dtype)
        grad = torch.addmm(grad_mean, rows, grad_second + grad_second.T) / len(rows)  # (B·H·W, C)
        return grad.to(x.dtype).view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


class _ExpandAndPool(torch.autograd.Function):
    """mean over positions of ReLU(W (x − c) + b), for ``images`` images at a time; nothing but x, c, W and b is kept.

    Products are in the precision of x; W, b and their gradients, which are sums over all pieces, in their own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor, weight: Tensor, bias: Tensor, images: int) -> Tensor:
        ctx.save_for_backward(x, centre, weight, bias)
        ctx.images = images
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        expanded = ((len(piece), torch.addmm(bias, _rows(piece) - centre, weight.T)) for piece in x.split(images))
        return torch.cat([rows.relu_().view(count, -1, len(bias)).mean(dim=1) for count, rows in expanded])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        x, centre, *folded = ctx.saved_tensors
        weight, bias = (tensor.to(x.dtype) for tensor in folded)
        grad_weight, grad_bias = (torch.zeros_like(tensor) for tensor in folded)
        grad_pieces = []
        for piece, grad_piece in zip(x.split(ctx.images), grad.split(ctx.images), strict=True):
            count, _, height, width = piece.shape  # b images
            rows = _rows(piece) - centre  # (b·H·W, C)
            passes = torch.addmm(bias, rows, weight.T).gt_(0)  # (b·H·W, E): 1 where ReLU lets through
            grad_map = passes.view(count, -1, len(bias)).mul_(grad_piece.unsqueeze(1) / (height * width)).flatten(0, 1)
            grad_weight += grad_map.T @ rows  # (E, C)
            grad_bias += grad_map.sum(dim=0)
            grad_pieces.append((grad_map @ weight).view(count, height, width, -1).permute(0, 3, 1, 2))
        return torch.cat(grad_pieces), None, grad_weight, grad_bias, None
