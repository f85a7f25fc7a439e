"""Layers that work for G neuron groups at once.

Torch has grouped convolutions, whose groups read their own channels only; here a group may read all channels and send
gradient into its own alone, and linear layers are grouped too.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from typing_extensions import override

from losses.errors import NetworkError

Pair = tuple[int, int]


def convolution_setting(conv: nn.Conv2d) -> dict[str, Any]:
    """What a convolution does beside its widths: arguments of ``nn.Conv2d`` and of :class:`SharingConv2d`.

    Raises:
        NetworkError: it has groups of its own, or pads otherwise than with a number of zeros.
    """
    if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise NetworkError(
            f"Neuron groups cannot share {conv}: it must have no groups of its own, and numbers for its padding, with "
            "zeros. Use another one, or num_groups: 1."
        )
    names = "kernel_size", "stride", "padding", "dilation"
    return {name: getattr(conv, name) for name in names} | {"bias": conv.bias is not None}


class SharingConv2d(nn.Module):
    """G convolutions of all channels, each of which sends gradient back into its own slice only.

    The forward pass and the gradient of the weights are those of one dense convolution C → G·c_out. The
    gradient of the input is a grouped one of 1/G of its cost: slice g receives the gradient of
    convolution g, as if the other slices had been detached.

    Args:
        in_channels: C.
        out_channels: G·c_out.
        kernel_size, stride, padding, dilation, bias: as in ``nn.Conv2d``; the weights are not initialised.
        groups: G.

    Attributes:
        own: the groups whose weights these are: all, unless others are in other processes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        groups: int,
        dilation: Pair = (1, 1),
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel_size))
        bound = self.weight[0].numel() ** -0.5  # nn.Conv2d's
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound)) if bias else None
        self.setting, self.groups, self.own = (stride, padding, dilation), groups, range(groups)

    @classmethod
    def of(cls, conv: nn.Conv2d, groups: int) -> Self:
        """A convolution with the same weights, whose output is that of G."""
        shared = cls(conv.in_channels, conv.out_channels, **convolution_setting(conv), groups=groups)
        shared.load_state_dict(conv.state_dict())
        return shared

    @override
    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` → ``(B, G·c_out, H', W')``."""
        share = x.shape[1] // self.groups
        channels = slice(self.own.start * share, self.own.stop * share)
        y = _SharingConvolution.apply(x, self.weight, *self.setting, len(self.own), channels)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)


class _SharingConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        channels: slice,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.setting, ctx.groups, ctx.channels = (stride, padding, dilation), groups, channels
        return F.conv2d(x, weight, None, stride, padding, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors

        def convolution_backward(
            x: Tensor, weight: Tensor, groups: int, wanted: list[bool]
        ) -> tuple[Tensor, Tensor, Tensor]:
            # Under autocast the gradient has a lower precision than what was saved.
            operands = gradient, x.to(gradient.dtype), weight.to(gradient.dtype)
            return torch.ops.aten.convolution_backward(*operands, None, *ctx.setting, False, [0, 0], groups, wanted)

        grad_x = None
        if ctx.needs_input_grad[0]:
            own, merged = _own_slices(weight[:, ctx.channels], ctx.groups)
            grad_own = convolution_backward(x[:, ctx.channels], own, merged, [True, False, False])[0]
            others = (0, 0, 0, 0, ctx.channels.start, x.shape[1] - ctx.channels.stop)
            grad_x = F.pad(grad_own, others) if any(others) else grad_own
        grad_weight = convolution_backward(x, weight, 1, [False, True, False])[1]
        return grad_x, grad_weight, None, None, None, None, None


def _own_slices(weight: Tensor, groups: int) -> tuple[Tensor, int]:
    """The part ``(G·c_out, C/M, …)`` of the weights through which gradient goes back, and M.

    M = G would do. Very thin groups leave most of a processor's vector unit idle, so those that
    have fewer than 16 channels are merged into M wider ones whose foreign weights are zero.
    """
    channels = weight.shape[1]  # C
    merged = next(m for m in range(groups, 0, -1) if groups % m == 0 and (channels // m >= 16 or m == 1))
    mask = torch.block_diag(*[weight.new_ones(len(weight) // groups, channels // groups)] * groups)  # (G·c_out, C)
    own = weight * mask[:, :, None, None]  # (G·c_out, C, …)
    own = own.unflatten(0, (merged, -1)).unflatten(2, (merged, -1))  # (M, G·c_out/M, M, C/M, …)
    own = own.diagonal(0, 0, 2).movedim(-1, 0)  # (M, G·c_out/M, C/M, …)
    return own.flatten(0, 1), merged


class GroupLinear(nn.Module):
    """G linear layers side by side: ``(B, G·in)`` → ``(B, G·out)``, one batched matrix product, not G of torch's.

    Args:
        groups: G.
        in_features: width of one group's input.
        out_features: width of one group's output.
        bias: add one.
    """

    def __init__(self, groups: int, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        bound = in_features**-0.5  # nn.Linear's, each group with its own fan-in
        self.weight = nn.Parameter(torch.empty(groups, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, 1, out_features).uniform_(-bound, bound)) if bias else None

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self._product(x.unflatten(1, (len(self.weight), -1)))

    def _product(self, x: Tensor) -> Tensor:
        """``(B, G, in)`` → ``(B, G·out)``."""
        x, weight = x.transpose(0, 1), self.weight.transpose(1, 2)  # (G, B, in), (G, in, out)
        y = torch.bmm(x, weight) if self.bias is None else torch.baddbmm(self.bias, x, weight)  # (G, B, out)
        return y.transpose(0, 1).flatten(1)


class SharingLinear(GroupLinear):
    """G linear layers of all features, each of which sends gradient back into its own slice only.

    ``(B, C)`` → ``(B, G·out)``; arguments as :class:`GroupLinear`.

    Attributes:
        own: the groups whose weights these are: all, unless others are in other processes.
    """

    def __init__(self, groups: int, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(groups, in_features, out_features, bias)
        self.groups, self.own = groups, range(groups)

    @override
    def forward(self, x: Tensor) -> Tensor:
        slices = torch.arange(x.shape[1], device=x.device) * self.groups // x.shape[1]  # (C,): group of a channel
        own = slices == torch.tensor([*self.own], device=x.device).unsqueeze(1)  # (G, C)
        x = x.unsqueeze(1)  # (B, 1, C)
        return self._product(torch.where(own, x, x.detach()))  # from (B, G, C)
