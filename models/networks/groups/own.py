"""Some neuron groups of a block, or of its heads, computed here; other processes compute the others.

    features of ──► own channels, or all of them ──► own weights ──► own channels ──gather──► features of
    all groups      (others': values, no gradient)                                            all groups

Features travel forward; nothing comes back.
"""

from collections.abc import Callable, Iterable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.models.resnet import BasicBlock, Bottleneck
from typing_extensions import override

from losses.errors import NetworkError
from models.networks.groups.heads import GroupHeads
from models.networks.layers.grouped import SharingConv2d, SharingLinear

Gather = Callable[[Tensor, int], Tensor]
"""Tensor, dimension → what all processes have, one after the other; gradients go to what this one has."""


class OwnGroups:
    """A block, or the heads of all its groups, reduced to some of the groups while these learn.

    Channels lie group by group, so each group owns as many rows of every weight. ``narrow`` leaves the own rows in the
    weights and has the part gather what all groups make; the modules, their parameters and hooks stay the same objects.
    ``widen`` puts together the weights of all groups again, for evaluation and checkpoints.

    Args:
        part: the block (:func:`models.networks.groups.cut.group_blocks`) or its :class:`GroupHeads`.
        own: the groups that are computed here; all processes have as many.
        groups: G.
        gather: exchanges with the processes that compute the others.
    """

    def __init__(self, part: nn.Module, own: range, groups: int, gather: Gather) -> None:
        self._part, self._own, self._groups, self._gather = part, own, groups, gather
        self._whole: list[tuple[Tensor, Tensor]] = []
        self._settings: list[tuple[nn.Module, str, Any]] = []
        self._hooks: list[RemovableHandle] = []

    def of(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """What the own groups have of a tensor; a view."""
        share = tensor.shape[dim] // self._groups
        return tensor.narrow(dim, self._own.start * share, len(self._own) * share)

    def narrow(self) -> None:
        """Keep the rows of the own groups, if they are not kept already."""
        if self._hooks:
            return
        part, reads_all = self._part, _reads_all(self._part)
        self._whole = [(tensor, tensor.data) for tensor in (*part.parameters(), *part.buffers()) if tensor.dim()]
        for tensor, whole in self._whole:
            tensor.data = self.of(whole).clone()
        first = next(part.children(), None)
        for layer in part.modules():
            settings = own_settings(layer, self._own, self._groups)
            if layer is first and reads_all and isinstance(layer, BasicBlock | Bottleneck) and not layer.downsample:
                settings = {"downsample": _Channels(self)}
            for name, value in settings.items():
                self._settings.append((layer, name, getattr(layer, name)))
                setattr(layer, name, value)
        self._hooks = [part.register_forward_hook(lambda _, x, y: self._gather(y, 1), prepend=True)]
        if not reads_all:
            self._hooks.append(part.register_forward_pre_hook(lambda _, x: self.of(x[0], 1)))

    def widen(self, learned: bool = True) -> None:
        """Make the part whole, if it is not.

        Args:
            learned: with what all processes have learned: all call this at once. If not, as it was before ``narrow``.
        """
        for tensor, whole in self._whole:
            if learned:
                whole.copy_(self._gather(tensor.data, 0))
            tensor.data = whole
        for layer, name, value in self._settings:
            setattr(layer, name, value)
        for hook in self._hooks:
            hook.remove()
        self._whole, self._settings, self._hooks = [], [], []

    @torch.no_grad()
    def require_same(self, x: Tensor) -> Tensor:
        """See that the own groups alone compute what they compute among the others.

        Args:
            x: what the part reads, ``(B, …)``.

        Returns:
            What it makes of it, ``(B, …)``.

        Raises:
            NetworkError: they do not.
        """
        mode, gather = self._part.training, self._gather
        whole = self._part.eval()(x)
        self._gather = lambda own, _: own
        self.narrow()
        try:
            same = torch.allclose(self._part(x), self.of(whole, 1), rtol=1e-3, atol=1e-5)
        except RuntimeError:  # shapes that do not fit
            same = False
        finally:
            self.widen(learned=False)
            self._gather = gather
            self._part.train(mode)
        if not same:
            raise NetworkError(
                "Groups of this network do not learn in processes of their own: they are not computed group by group "
                "throughout (BatchNorm before a block's first convolution, say). Leave groups_apart out."
            )
        return whole


def require_apart(pairs: Iterable[tuple[OwnGroups, OwnGroups]], x: Tensor) -> None:
    """See that all blocks, each with its heads, are computed group by group.

    Args:
        pairs: block and heads, in order.
        x: what the first block reads, ``(B, …)``.

    Raises:
        NetworkError: one is not.
    """
    for block, heads in pairs:
        x = block.require_same(x)
        heads.require_same(x)


def _reads_all(part: nn.Module) -> bool:
    """Whether each group reads the channels of all groups, not its own."""
    return any(isinstance(layer, SharingConv2d | SharingLinear) or _is_dense(layer) for layer in part.modules())


def _is_dense(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == 1


class _Channels(nn.Module):
    """An identity shortcut: the own channels of what a block reads."""

    def __init__(self, own: OwnGroups) -> None:
        super().__init__()
        self._of = own.of

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self._of(x, 1)


@singledispatch
def own_settings(layer: nn.Module, own: range, groups: int) -> dict[str, Any]:
    """What a layer is told when it has the weights of some groups only: attribute → value.

    Args:
        layer: of a grouped block or head.
        own: the groups whose weights it has.
        groups: G.
    """
    return {}


@own_settings.register
def _(layer: nn.Conv2d, own: range, groups: int) -> dict[str, Any]:
    return {} if _is_dense(layer) else {"groups": layer.groups // groups * len(own)}


@own_settings.register
def _(layer: SharingConv2d, own: range, groups: int) -> dict[str, Any]:
    return {"own": own}


@own_settings.register
def _(layer: SharingLinear, own: range, groups: int) -> dict[str, Any]:
    return {"own": own}


@own_settings.register
def _(layer: GroupHeads, own: range, groups: int) -> dict[str, Any]:
    return {"num_groups": len(own)}
