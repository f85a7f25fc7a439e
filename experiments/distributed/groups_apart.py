"""Neuron groups of a block on devices of their own: a node is (block, group), as the GN-DGL paper draws it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from losses.errors import UsageError
from losses.processes import side_by_side
from models.local_learning import LocalLearning
from models.networks.groups.own import OwnGroups, require_apart


class GroupsApart:
    """The groups of this process, in some of the blocks.

    Features of all groups are gathered at a block's end, and predictions at the end of its heads: forward, once a step.
    Losses, also the diversity of the predictions, are then computed alike in all processes; the gradients of each are
    those of one process, for the rows of its own groups. A final head learns in all of them, to the same weights.

    Args:
        model: what is trained.
        group: the processes with the other groups of the same blocks, and this one.
        parts: blocks (and the final head) that learn here.

    Raises:
        UsageError: the groups do not fall apart into that many processes, or the optimizer looks at whole weights.
    """

    def __init__(self, model: LocalLearning, group: dist.ProcessGroup, parts: range) -> None:
        self._model, self._group = model, group
        self._processes, place = dist.get_world_size(group), dist.get_rank(group)
        if model.num_groups % self._processes:
            raise UsageError(
                f"{self._processes} processes cannot share the {model.num_groups} groups of {type(model).__name__}: "
                "choose --trainer.strategy.groups_apart among the divisors of --model.num_groups."
            )
        _require_rows_apart(model.make_optimizer)
        share = model.num_groups // self._processes
        self._own = range(place * share, (place + 1) * share)
        make = partial(OwnGroups, own=self._own, groups=model.num_groups, gather=partial(side_by_side, group=group))
        self._parts = {k: (make(model.blocks[k]), make(model.heads[k])) for k in parts if k < model.num_blocks}
        model.total_norm = self._total_norm  # type: ignore[method-assign]  # its gradients are in several processes

    def require_groups(self) -> None:
        """See that every block can be computed group by group.

        Raises:
            NetworkError: one cannot.
        """
        x = torch.rand(2, *self._model.image_shape, generator=torch.Generator().manual_seed(0))
        require_apart(self._parts.values(), x.to(self._model.trainer.strategy.root_device))

    def leave(self) -> None:
        """Have a norm be that of gradients in this process."""
        vars(self._model).pop("total_norm", None)

    def narrow(self) -> None:
        """Train the own groups alone."""
        for pair in self._parts.values():
            for part in pair:
                part.narrow()

    def widen(self, learned: bool = True) -> None:
        """Have the weights of all groups in every process: as they were, or as all have learned them."""
        for pair in self._parts.values():
            for part in pair:
                part.widen(learned)

    def whole_state(self, k: int, state: dict[str, Any]) -> dict[str, Any]:
        """What the optimizer of a part remembers of all groups."""
        return self._of_rows(k, state, lambda rows: side_by_side(rows, 0, self._group))

    def own_state(self, k: int, state: dict[str, Any]) -> dict[str, Any]:
        """The own groups' share of what the optimizer of a part remembers."""
        place = dist.get_rank(self._group)
        return self._of_rows(k, state, lambda rows: rows.chunk(self._processes)[place].clone())

    def _of_rows(self, k: int, state: dict[str, Any], change: Any) -> dict[str, Any]:
        if k not in self._parts:
            return state
        changed = tree_map(lambda x: change(x) if isinstance(x, Tensor) and x.dim() else x, state["state"])
        return {**state, "state": changed}

    def _total_norm(self, k: int, gradients: Sequence[Tensor]) -> Tensor:
        norm = nn.utils.get_total_norm(gradients)
        if k not in self._parts:
            return norm
        square = norm.square()
        dist.all_reduce(square, group=self._group)
        return square.sqrt()


def _require_rows_apart(make_optimizer: OptimizerCallable) -> None:
    """See that a step of a weight's rows does not depend on its other rows."""
    rows, gradient = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    stepped = []
    for parts in (1, 2):
        weights = [nn.Parameter(part.clone()) for part in rows.chunk(parts)]
        for weight, own in zip(weights, gradient.chunk(parts), strict=True):
            weight.grad = own
        optimizer = make_optimizer(weights)
        optimizer.step()
        stepped.append(torch.cat([*weights]))
    if not torch.allclose(stepped[0], stepped[1]):
        raise UsageError(
            f"{type(optimizer).__name__} looks at whole weights, and each process has the rows of its own groups: "
            "choose another optimizer, or leave groups_apart out."
        )
