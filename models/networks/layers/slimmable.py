"""Slimmable layers: one set of weights, several widths, each of which uses the first channels.

    width 1.0   ████████████   all channels
    width 0.5   ██████         the first half of the same weights
    width 0.25  ███            …, each width with BatchNorm layers of its own

J. Yu, L. Yang, N. Xu, J. Yang, T. Huang, "Slimmable Neural Networks", ICLR 2019; as S. Zhao, L. Zhu, X. Wang, Y. Yang,
"Slimmable Networks for Contrastive Self-supervised Learning", IJCV 2024, use them.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from losses.errors import NetworkError


class Width:
    """The width at which a slimmable network runs now; all of its layers share one such object.

    A copy of the network (``copy.deepcopy``) runs at a width of its own.

    Args:
        widths: shares of the channels, from 1.0 downwards.

    Attributes:
        widths: all that there are.
        place: which of them it is now, counted from 0; the whole network unless told otherwise.

    Raises:
        NetworkError: they do not fall from 1.0 to above 0.
    """

    def __init__(self, widths: Sequence[float]) -> None:
        falling = all(one > other for one, other in pairwise(widths))
        if not widths or widths[0] != 1 or widths[-1] <= 0 or not falling:
            raise NetworkError(
                f"Widths are shares of the channels that begin with 1.0 and fall, as [1.0, 0.5, 0.25]: not "
                f"{list(widths)}."
            )
        self.widths, self.place = tuple(widths), 0

    @contextmanager
    def at(self, width: float) -> Iterator[None]:
        """Within, the network runs at one of its widths.

        Raises:
            NetworkError: it has no such width.
        """
        if width not in self.widths:
            raise NetworkError(f"The network has widths {list(self.widths)}, and not {width:g}.")
        before, self.place = self.place, self.widths.index(width)
        try:
            yield
        finally:
            self.place = before

    @property
    def now(self) -> float:
        """The width at which the network runs."""
        return self.widths[self.place]


def first_channels(width: float, channels: int) -> int:
    """How many of so many channels a width uses: the floor of its share.

    Raises:
        NetworkError: none.
    """
    count = int(width * channels + 1e-6)  # 0.29 · 100 is less than 29
    if not count:
        raise NetworkError(f"At width {width:g} a layer of {channels} channels would have none: choose larger widths.")
    return count


class Slimmable(nn.Module):
    """A layer with a weight, of which each width uses the first outputs and inputs.

    Attributes:
        width: at which it runs.
        whole: whether each width uses all outputs, and all inputs.
    """

    weight: Tensor
    bias: Any  # a parameter or None: torch's layers do not declare it alike
    width: Width
    whole: tuple[bool, bool]

    def take(self, layer: nn.Conv2d | nn.Linear, width: Width, gives_all: bool, reads_all: bool) -> None:
        """Become slimmable with the weights of a plain layer.

        Raises:
            NetworkError: the narrowest width would have no channels.
        """
        self.weight, self.bias = layer.weight, layer.bias
        self.width, self.whole = width, (gives_all, reads_all)
        self.prefix(width.widths[-1])

    def prefix(self, width: float) -> tuple[slice, slice]:
        """The outputs and inputs that a width uses: where in the weight they are."""
        outputs, inputs = (
            slice(size if whole else first_channels(width, size))
            for size, whole in zip(self.weight.shape, self.whole, strict=False)
        )
        return outputs, inputs

    def sliced(self, width: float) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias that a width uses; gradients go to these parts of the whole."""
        outputs, inputs = self.prefix(width)
        return self.weight[outputs, inputs], None if self.bias is None else self.bias[outputs]

    def plain(self, width: float) -> nn.Module:
        """A plain layer with the weights that a width uses."""
        weight, bias = self.sliced(width)
        layer = self.of_shape(len(weight), weight.shape[1])
        layer.weight = nn.Parameter(weight.detach().clone())
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return layer

    def of_shape(self, outputs: int, inputs: int) -> Any:
        """A plain layer of that many outputs and inputs, without values."""
        raise NotImplementedError


class SlimmableConv2d(Slimmable, nn.Conv2d):
    """A convolution whose widths use its first channels.

    Args:
        conv: the plain convolution, whose weights it takes.
        width: at which it runs.
        gives_all: each width has all outputs.
        reads_all: each width reads all inputs: the stem does.

    Raises:
        NetworkError: the convolution has groups, or a width no channels.
    """

    def __init__(self, conv: nn.Conv2d, width: Width, gives_all: bool = False, reads_all: bool = False) -> None:
        if conv.groups != 1:
            raise NetworkError(f"{conv} has groups of channels, whose first ones are no narrower convolution.")
        super().__init__(conv.in_channels, conv.out_channels, **_setting(conv))
        self.take(conv, width, gives_all, reads_all)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *self.sliced(self.width.now))

    @override
    def of_shape(self, outputs: int, inputs: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, **_setting(self))


def _setting(conv: nn.Conv2d) -> dict[str, Any]:
    """What a convolution does beside its widths; its weights are given later."""
    names = "kernel_size", "stride", "padding", "dilation", "padding_mode"
    return {name: getattr(conv, name) for name in names} | {"bias": conv.bias is not None, "device": "meta"}


class SlimmableLinear(Slimmable, nn.Linear):
    """A linear layer whose widths use its first units.

    Args:
        linear: the plain layer, whose weights it takes.
        width: at which it runs.
        gives_all: each width has all outputs: the last layer does.
        reads_all: each width reads all inputs.

    Raises:
        NetworkError: a width would have no units.
    """

    def __init__(self, linear: nn.Linear, width: Width, gives_all: bool = False, reads_all: bool = False) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.take(linear, width, gives_all, reads_all)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, *self.sliced(self.width.now))

    @override
    def of_shape(self, outputs: int, inputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, self.bias is not None, device="meta")


class SwitchableBatchNorm(nn.Module):
    """A BatchNorm layer for each width, complete with scale, shift and statistics.

    Args:
        norm: the plain layer; each width begins with its first channels' values.
        width: at which it runs.
        gives_all: each width has all channels.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, width: Width, gives_all: bool = False) -> None:
        super().__init__()
        count = norm.num_features
        self.width = width
        self.norms = nn.ModuleList(
            _first_of(norm, count if gives_all else first_channels(share, count)) for share in width.widths
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.width.place](x)

    def plain(self, width: float) -> nn.Module:
        """A copy of the layer of a width."""
        return copy.deepcopy(self.norms[self.width.widths.index(width)])


def _first_of(norm: nn.BatchNorm1d | nn.BatchNorm2d, channels: int) -> nn.Module:
    narrow = type(norm)(channels, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    narrow.load_state_dict({name: t[:channels] if t.ndim else t for name, t in norm.state_dict().items()})
    return narrow
