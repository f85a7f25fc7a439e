"""Self-defined targets: no labels, the most active outputs of a layer are what they shall be.

D. Liu, J. Laydevant, A. Pontlevy, D. Querlioz, J. Grollier, "Unsupervised End-to-End Training with a Self-Defined
Target", arXiv 2403.12116; Neuromorphic Computing and Engineering 4 (4), 2024: end to end, K = 1.

    images ──► block 1 ──detach──► block 2 ──detach──► … ──► block K
                  │                   │                         │
             N outputs y         N outputs y               N outputs y
                  │ winners → T       │                         │
               ‖y − T‖²            ‖y − T‖²                  ‖y − T‖²

Outputs and a target for each of several blocks are this suite's own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from losses.winners import WinnerTakeAll
from models.features import pooled
from models.local_learning import LocalLearning
from models.method import LabelledImages, log_epoch
from models.networks.chain import NetworkCallable
from models.networks.cut import Cut, block_shapes, cut_chain
from models.networks.heads.classifiers import HeadCallable
from models.networks.heads.outputs import OutputLayer
from models.networks.sequential import build_chain
from ranges import PositiveFloat, PositiveInt

TargetCallable = Callable[[int], WinnerTakeAll]
"""Number of outputs → what defines their targets."""


class SelfDefinedTarget(LocalLearning):
    """K blocks, each with N outputs of its own that learn to be what the winners among them are told to be.

    Logged per block and epoch: ``never_won`` (share of the outputs that no image of the epoch has made win) and
    ``win_entropy`` (of the wins' distribution over the outputs, over its largest value, log N).

    Args:
        network: the network, a class from ``models.networks``; its classifier is not used.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data. Nothing is trained on them.
        num_blocks: K; 1 is end-to-end training, as published.
        cut: where to cut.
        outputs: N, much larger than the number of classes.
        head: what makes a block's outputs: ``OutputLayer``.
        target: what defines their targets: ``losses.WinnerTakeAll``.
        init_gain: draw weights of linear layers uniformly with this gain (X. Glorot, Y. Bengio, AISTATS 2010), their
            biases 0; by default they are torch's.
        training: optimizer, scheduler and the other arguments of :class:`LocalLearning`.

    Raises:
        NetworkError: the network cannot be cut as asked.
        UsageError: more winners than outputs.
    """

    charts = ("never_won", "win_entropy")

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        num_blocks: PositiveInt = 1,
        cut: Cut = Cut(),
        outputs: PositiveInt = 2000,
        head: HeadCallable = OutputLayer,
        target: TargetCallable = WinnerTakeAll,
        init_gain: PositiveFloat | None = None,
        **training: Any,
    ) -> None:
        chain = build_chain(network, image_shape, num_classes)
        blocks = cut_chain(chain, num_blocks, cut, lambda shape: head(shape, outputs))
        heads = [head(shape, outputs) for shape in block_shapes(chain, blocks)]
        if init_gain:
            for part in (*blocks, *heads):
                _draw_linear_layers(part, init_gain)
        super().__init__(network, chain, num_classes, blocks, heads, **training)
        self.targets = nn.ModuleList(target(outputs) for _ in blocks)
        self.outputs, self.make_head, self.make_target = outputs, head, target

    def target(self, k: int) -> WinnerTakeAll:
        """What defines the targets of block k (counted from 0)."""
        target = self.targets[k]
        assert isinstance(target, WinnerTakeAll)
        return target

    @override
    def part_modules(self, k: int) -> nn.ModuleList:
        """The block, its head and its targets."""
        return nn.ModuleList([*super().part_modules(k), self.targets[k]])

    # -- the algorithm ------------------------------------------------------------------------

    @override
    def local_loss(self, k: int, features: Tensor, batch: LabelledImages) -> Tensor:
        """Mean square of the difference between block k's outputs and their targets."""
        outputs = self.heads[k](features)
        mask = self.target(k).mask(outputs)
        outputs = mask * outputs
        return F.mse_loss(outputs, self.targets[k](outputs.detach(), mask))

    @override
    def on_train_epoch_start(self) -> None:
        """All outputs win as easily again."""
        for k in range(self.num_blocks):
            self.target(k).begin_epoch()

    @override
    def on_train_epoch_end(self) -> None:
        """Log who has won; step the schedules."""
        super().on_train_epoch_end()
        for k in set(self.learners) & set(self.here):
            wins = self.target(k).wins
            entropy = torch.special.entr(wins / wins.sum()).sum() / math.log(len(wins))
            found = {"never_won": wins.eq(0).float().mean(), "win_entropy": entropy}
            log_epoch(self, {f"train/{self.part_names[k]}/{name}": value for name, value in found.items()})

    # -- beside training ------------------------------------------------------------------------

    judged_features = "outputs"

    @property
    @override
    def judged_modules(self) -> Sequence[nn.Module]:
        """What makes the outputs."""
        return [*self.heads]

    @override
    def validation_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """Send the images through blocks and heads, where an online probe reads the outputs."""
        self.block_features(batch.images)

    test_step = validation_step

    @override
    def block_features(self, images: Tensor, last: int | None = None) -> dict[str, Tensor]:
        """``block<k>/gap``, features averaged over positions, and ``block<k>/outputs`` ``(B, N)``."""
        found: dict[str, Tensor] = {}
        for name, head, features in zip(self.block_names[:last], self.heads, self.walk(images), strict=False):
            found |= {f"{name}/gap": pooled(features), f"{name}/outputs": head(features)}
        return found


def _draw_linear_layers(module: nn.Module, gain: float) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
