"""MAN and MAN++: heads that lead through a copy of the next block's first unit, and a momentum average of it.

J. Su et al., "Momentum Auxiliary Network for Supervised Local Learning", ECCV 2024 (arXiv 2407.05623), and "MAN++",
TPAMI 2026 (arXiv 2507.16279), with their released code (JunhaoSu0/MAN, JunhaoSu0/MAN_PlusPlus):

    h_k ─┬─► copy (learns)    · s      ─┐
         └─► average (θ̄)     · (2 − s) ─┴─ + ──► head ──► L_k           θ̄ ← m θ̄ + (1 − m) θ_{k+1, first unit}

The papers call the copy a "learnable bias"; it is a whole unit. No gradient goes to θ̄ or to block k + 1: parameters
travel down, one unit's per step and boundary. In MAN s is 1, in MAN++ it is learned. Copy, average and unit are drawn
anew each, as in the code; BatchNorm's running statistics are not averaged.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from losses.errors import NetworkError, UsageError
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.chain import FeatureShape
from models.networks.heads.classifiers import AuxHead, HeadCallable
from models.networks.memory.profile import profile
from ranges import Share


class MomentumHead(nn.Module):
    """Copies and a momentum average of a unit side by side, their sum read by a head.

    Args:
        feature_shape: of the block's features.
        num_classes: width of the output.
        head: made for what the unit gives.
        copies: how many that learn.
        average: whether there is an average.
        momentum: m.
        learned_scale: whether s is learned.

    Raises:
        NetworkError: the features are not those of a block with another behind it, or no unit is asked for.
    """

    def __init__(
        self,
        feature_shape: tuple[int, ...],
        num_classes: int,
        head: HeadCallable,
        copies: int,
        average: bool,
        momentum: float,
        learned_scale: bool,
    ) -> None:
        super().__init__()
        if not isinstance(feature_shape, FeatureShape) or feature_shape.unit + 1 >= len(feature_shape.chain.units):
            raise NetworkError("MAN's heads copy the unit behind a block, and there is none behind these features.")
        if copies + average < 1:
            raise NetworkError("MAN's heads need a copy of the next unit, or its average: set copies or average.")
        chain, following = feature_shape.chain, feature_shape.unit + 1
        [(unit, _)] = profile([chain.units[following]], feature_shape)
        halve = len(unit.output_shape) == 3 and unit.output_shape[1] < feature_shape[1]
        made = [chain.unit_like(following, feature_shape, halve) for _ in range(copies + average)]
        self.copies = nn.ModuleList(made[:copies])
        self.average = as_buffers(made[-1]) if average else None
        self.scale = nn.Parameter(torch.ones(())) if learned_scale and copies and average else None
        self.head = head(FeatureShape(unit.output_shape, chain, following), num_classes)
        self.momentum = momentum

    @override
    def forward(self, features: Tensor) -> Tensor:
        """Logits of what copies and average make of features."""
        ways = [copied(features) for copied in self.copies]
        ways += [] if self.average is None else [self.average(features)]
        if self.scale is not None:
            ways = [*(self.scale * way for way in ways[:-1]), (2 - self.scale) * ways[-1]]
        return self.head(sum(ways[1:], start=ways[0]))

    @torch.no_grad()
    def follow(self, unit: nn.Module) -> None:
        """θ̄ ← m θ̄ + (1 − m) θ."""
        if self.average is not None:
            for name, parameter in unit.named_parameters():
                self.average.get_buffer(name).lerp_(parameter, 1 - self.momentum)


def as_buffers(module: nn.Module) -> nn.Module:
    """The same module, its parameters turned into buffers: kept in checkpoints, and nothing that learns."""
    for part in module.modules():
        for name, parameter in [*part.named_parameters(recurse=False)]:
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module


class MAN(DecoupledGreedy):
    """DGL with momentum heads on blocks 1 … K − 1.

    ``copies`` and ``average`` are what the papers' ablations leave out: a copy alone (1, false), the average alone (0,
    true), two copies (2, false), and, with momentum 1, a copy beside a random unit that never moves.

    Args:
        head: the base method's head, behind copy and average.
        copies: of the next unit that learn.
        average: whether there is a momentum average of it.
        momentum: m, per step.
        learned_scale: s is learned: MAN++.
        options: all else, as in :class:`DecoupledGreedy`.

    Raises:
        NetworkError: the network does not say how its units are made, or neither copy nor average is asked for.
        UsageError: blocks that learn one after the other: the next one's parameters would not move.
    """

    def __init__(
        self,
        head: HeadCallable = AuxHead,
        copies: Literal[0, 1, 2] = 1,
        average: bool = True,
        momentum: Share = 0.995,
        learned_scale: bool = False,
        **options: Any,
    ) -> None:
        def momentum_head(shape: tuple[int, ...], num_classes: int) -> Any:
            return MomentumHead(shape, num_classes, head, copies, average, momentum, learned_scale)

        super().__init__(head=momentum_head, **options)
        if self.schedule.lengths:
            raise UsageError("MAN's heads follow the next block while it learns: leave epochs_per_block out.")

    @override
    def step_optimizer(self, k: int) -> None:
        """Step; then the average follows the next block, which has not learned from this batch yet."""
        super().step_optimizer(k)
        if self._steps_now and k + 1 < self.num_blocks:
            head, (unit, *_) = self.heads[k], self.blocks[k + 1].children()
            assert isinstance(head, MomentumHead)
            head.follow(unit)

    @property
    @override
    def why_one_place(self) -> str:
        return "read the next block's parameters"
