"""Closed-form fitting of a multilayer perceptron: every layer by ridge regression, one pass over the data each.

After the last part of A. Øland, "Efficient Deep Learning" (PhD thesis, CMU-CS-24-147, 2024). The thesis' text was
not available: the abstract's announcement and the keywords "closed-form solution" and "platonic projections" are all
that we had, and what is here is our reading of them.

    H₀ = [X, 1];  l = 1 … L:  W_l = (HᵀH + λI)⁻¹ Hᵀ Z_l  with H = H_{l−1},  H_l = [ReLU(H_{l−1} W_l), 1]
    prediction: argmax of H_L W_out,  W_out = (HᵀH + λI)⁻¹ Hᵀ Y  with H = H_L,  Y = ±1 codes of the classes

What sets the variants apart are the targets Z_l of the hidden layers (``models.parts.ridge``). Random
features, which have none, explain nearly all of the success; the label's targets add little.
"""

import math
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from typing_extensions import override

from losses.errors import UsageError
from models.method import Classifier, LabelledImages, log_epoch, require_supported_processes
from models.networks.mlp import MLP
from models.parts.ridge import (
    ForwardProjection,
    NormalEquations,
    RandomFeatures,
    TargetsCallable,
    class_codes,
    with_constant,
)
from models.plan import Schedule
from ranges import PositiveFloat, PositiveInt


class ClosedFormMLP(Classifier):
    """A ReLU network whose layers are solved for, one per epoch, without gradients.

    Batches are counted into two matrices, HᵀH and HᵀZ, so neither their size nor their order matters, and memory
    does not grow with the data. Images must be the same in every epoch: no random augmentation.

    Each epoch's factorisation also gives a read-out of what the layer reads, for C more columns: ``val/input/top1``
    (linear ridge regression on the inputs), ``val/block<l>/top1`` after l hidden layers; ``val/top1`` is the deepest
    that is solved, at the end the model's. Logged when a layer is solved, of the features that were read (``input``,
    ``block1``, …): ``train/…/condition`` (of HᵀH + λI), ``effective_rank``, ``readout_r2``, ``seconds``; and
    ``train/block<l>/target_r2``, the share of its targets' variance that layer l reaches.

    Args:
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        widths: units of each hidden layer; none is linear ridge regression. ``trainer.max_epochs`` is one more.
        targets: what hidden layers are fitted to, a class from ``models.parts.ridge``.
        ridge: λ > 0, on the sums over all samples (not their mean), biases included.

    Raises:
        UsageError: λ is not above 0, or a width not above 0.
        NetworkError: the targets do not fit a width.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        widths: Sequence[PositiveInt] = (500,),
        targets: TargetsCallable = ForwardProjection,
        ridge: PositiveFloat = 1e-2,
    ) -> None:
        super().__init__()
        if not ridge > 0:
            raise UsageError(
                f"ridge is the λ of ridge regression, above 0, not {ridge:g}: without it the equations have no single "
                "solution. Use 1e-2, or 1e-6 for next to none."
            )
        if any(width < 1 for width in widths):
            raise UsageError(f"widths are units of hidden layers, at least 1 each, not {list(widths)}.")
        self.automatic_optimization = False
        self.image_shape, self.num_classes, self.ridge = image_shape, num_classes, ridge
        self.make_network = partial(MLP, hidden=widths, batch_norm=False)
        self.network_name = "-".join(["MLP", *map(str, widths)]) if widths else "linear"
        self.num_blocks, self.schedule = len(widths), Schedule(len(widths) + 1, epochs_per_block=1)
        sizes = [math.prod(image_shape), *widths]
        self.blocks = nn.ModuleList(nn.Sequential(_random_linear(*size), nn.ReLU()) for size in pairwise(sizes))
        self.readouts = nn.ModuleList(nn.Linear(size, num_classes, dtype=torch.float64) for size in sizes)
        for weights in self.readouts.parameters():
            nn.init.zeros_(weights)
        hidden = [targets(fan_in + 1, width, num_classes) for fan_in, width in pairwise(sizes)]
        self.targets = nn.ModuleList([*hidden, RandomFeatures(sizes[-1] + 1, 0, num_classes)])  # none after the last
        self.solved: Tensor = nn.Buffer(torch.tensor(0))
        self.requires_grad_(False)
        self._equations: NormalEquations | None = None

    @property
    @override
    def part_names(self) -> list[str]:
        """What metrics call the features that are read out: ``input``, then ``block1`` … ``blockL``."""
        return ["input", *self.block_names]

    # -- the algorithm ------------------------------------------------------------------------

    @torch.no_grad()
    def accumulate(self, images: Tensor, labels: Tensor) -> None:
        """Count samples ``(B, C, H, W)`` and labels ``(B,)`` into the sums of the layer that is to be solved next."""
        k = int(self.solved)
        features = with_constant(self._features(images, k)[k])
        targets = torch.cat([self.targets[k](features, labels), class_codes(labels, self.num_classes)], dim=1)
        if self._equations is None:
            self._began = time.perf_counter()
            self._equations = NormalEquations.empty(features.shape[1], targets.shape[1], features.device)
        self._equations.add(features, targets)

    @torch.no_grad()
    def solve(self) -> dict[str, Tensor | float]:
        """Set the next hidden layer, and the read-out of what it reads, to the solution of the counted samples.

        Returns:
            What is logged of it, as the class says.
        """
        k, equations, self._equations = int(self.solved), self._equations, None
        assert equations, "samples are accumulated first"
        try:
            weights = equations.solve(self.ridge)
        except torch.linalg.LinAlgError as fault:
            raise UsageError(
                f"A ridge of {self.ridge:g} is too small: HᵀH + λI of {self.part_names[k]} is singular in float64. "
                "Raise it, say to 1e-6."
            ) from fault
        hidden, readout = slice(0, -self.num_classes), slice(-self.num_classes, None)
        name = self.part_names[k]
        metrics = {
            f"{name}/condition": equations.condition(self.ridge),
            f"{name}/effective_rank": equations.effective_rank(),
            f"{name}/readout_r2": equations.r2(weights, readout),
        }
        _set(self.readouts[k], weights[:, readout])
        if weights.shape[1] > self.num_classes:  # random features have no targets: they stay as they were drawn
            _set(self.blocks[k].get_submodule("0"), weights[:, hidden])
            metrics[f"block{k + 1}/target_r2"] = equations.r2(weights, hidden)
        self.solved += 1
        return metrics | {f"{name}/seconds": time.perf_counter() - self._began}

    @override
    def training_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """Count one batch in; solve after an epoch's last one."""
        self.accumulate(batch.images, batch.labels)
        self.optimizers().step()  # type: ignore[union-attr]  # there is one
        if self.trainer.is_last_batch:  # here, since checkpoints and validation come before on_train_epoch_end
            log_epoch(self, {f"train/{name}": value for name, value in self.solve().items()})

    @override
    def configure_optimizers(self) -> Optimizer:
        """One that changes nothing: Lightning's count of batches, which data and loggers go by, is its steps."""
        return SGD(self.parameters(), lr=0.0)

    # -- prediction ---------------------------------------------------------------------------

    def _features(self, images: Tensor, last: int) -> list[Tensor]:
        """Inputs ``(B, d)``, then the features of blocks 1 … ``last``; float64, constants left out."""
        features = [images.flatten(1).double()]
        for block in self.blocks[:last]:
            features.append(block(features[-1]))
        return features

    @override
    def block_logits(self, images: Tensor) -> dict[str, Tensor]:
        """``input``, ``block1``, … → read-outs ``(B, classes)``, as deep as is solved; the last is the model's."""
        features = self._features(images, last=max(int(self.solved) - 1, 0))
        readouts = zip(self.part_names, self.readouts, features, strict=False)
        return {name: readout(h) for name, readout, h in readouts}

    @override
    def block_features(self, images: Tensor, last: int | None = None) -> dict[str, Tensor]:
        """What probes read of blocks 1 … ``last``; of those that are not solved yet, random features."""
        features = self._features(images, last or self.num_blocks)
        return {f"{name}/gap": h for name, h in zip(self.block_names, features[1:], strict=False)}

    @override
    def forward(self, images: Tensor) -> Tensor:
        """The model's prediction: ``(B, classes)``, about 1 for the class and −1 for the others."""
        return list(self.block_logits(images).values())[-1]

    # -- beside training ------------------------------------------------------------------------

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sums of a layer that is not solved yet."""
        super().on_save_checkpoint(checkpoint)
        if self._equations:
            checkpoint["normal_equations"] = vars(self._equations)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on inside a layer."""
        if sums := checkpoint.get("normal_equations"):
            self._equations = NormalEquations(**sums)

    @override
    def on_train_start(self) -> None:
        """Bring a checkpoint's sums to the device, which is not known when they are read."""
        self._began = time.perf_counter()
        if self._equations:
            self._equations = NormalEquations(*(sums.to(self.device) for sums in vars(self._equations).values()))

    @override
    def setup(self, stage: str) -> None:
        """Refuse several processes, and limits of epochs or steps that would leave layers unsolved."""
        require_supported_processes(self, self.trainer)
        short = self.trainer.fast_dev_run  # type: ignore[attr-defined]  # a connector of Lightning's sets it
        limits, needed = (self.trainer.max_epochs, self.trainer.max_steps), self.schedule.epochs
        if stage == "fit" and not short and limits != (needed, -1):
            raise UsageError(
                "One epoch solves one layer, the read-out included: set trainer.max_epochs to "
                f"{needed}, the number of widths and one, not {limits[0]}, and no max_steps."
            )


def _random_linear(fan_in: int, width: int) -> nn.Linear:
    """Gaussian weights and biases of standard deviation √(2 / (fan-in, constant included))."""
    linear = nn.Linear(fan_in, width, dtype=torch.float64)
    for weights in linear.parameters():
        nn.init.normal_(weights, std=(2 / (fan_in + 1)) ** 0.5)
    return linear


def _set(linear: Any, weights: Tensor) -> None:
    """Set an ``nn.Linear`` to weights ``(fan-in + 1, width)``, the last row of which are biases."""
    linear.weight.copy_(weights[:-1].T)
    linear.bias.copy_(weights[-1])
