"""Forward-Forward: no way back; layers are active on images with their labels and quiet on images with wrong ones.

G. Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", arXiv 2212.13345, 2022; rules as in his
released MATLAB code.

    image, true label ──┐
    image, wrong label ─┴► block 1 ──detach──► block 2 ──detach──► … ──► block K
                             │ goodness           │ goodness               │ goodness
    image, no label ──────► block 1 ─────────► block 2 ──────────► … ──► block K ──► read-out
                                                                                        │
                       wrong labels are those that the read-out finds likely  ◄─────────┘

A class is predicted by the read-out, in one pass, or as the label with which the blocks are most active ("energy").
"""

from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from losses.errors import NetworkError
from losses.goodness import unit_length, wrong_labels
from models.goodness import Contrast, GoodnessLearning
from models.method import LabelledImages
from models.networks.chain import NetworkCallable
from models.networks.layers.labels import LabelCallable, OverlaidLabel
from models.plan import StepPlan


class ForwardForward(GoodnessLearning):
    """K blocks that tell right labels from wrong ones by their goodness.

    Evaluated: ``final``, the read-out's one pass, which is the model's prediction, and ``energy``: all labels are
    tried, and the squares of the activities of blocks ``read_from`` … K are added up.

    Args:
        network: the network, a class from ``models.networks``; its classifier is not used.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        label: how a label joins an image: ``OverlaidLabel``, as published, or ``AppendedLabel``.
        negatives: wrong labels are drawn as the read-out finds them likely in the same step (``hard``, as published),
            or all as likely (``uniform``).
        options: all else, as in :class:`GoodnessLearning`.

    Raises:
        NetworkError: the label does not fit the images; or as in :class:`GoodnessLearning`.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        label: LabelCallable = OverlaidLabel,
        negatives: Literal["hard", "uniform"] = "hard",
        **options: Any,
    ) -> None:
        join = label(image_shape, num_classes)
        try:
            super().__init__(network, join.shape, num_classes, **options)
        except NetworkError as fault:
            if join.shape == image_shape:
                raise
            raise NetworkError(
                f"{fault} What it reads is one row of all pixels and the label ({type(join).__name__}): take an MLP."
            ) from fault
        self.label, self.negatives, self.image_shape = join, negatives, image_shape

    # -- the algorithm ------------------------------------------------------------------------

    @override
    def step_input(self, batch: LabelledImages) -> tuple[int, Any]:
        """Images with their labels, with wrong ones and with none; hard ones ask the read-out first."""
        if batch.arrived:
            return batch.arrived
        neutral = self.neutral(batch.images)
        if self.negatives == "uniform":
            alike = batch.images.new_zeros(len(batch.labels), self.num_classes)
            return 0, self._contrast(batch, wrong_labels(batch.labels, alike))._replace(neutral=neutral)
        with torch.no_grad():
            read = self.readable(self.passing(neutral))
            wrong = wrong_labels(batch.labels, self.heads[self.num_blocks](read))
        return 0, self._contrast(batch, wrong)._replace(read=(read,))

    def _contrast(self, batch: LabelledImages, wrong: Tensor) -> Contrast:
        right = self.label(batch.images, batch.labels)
        return Contrast(unit_length(right), unit_length(self.label(batch.images, wrong)))

    @property
    @override
    def why_one_place(self) -> str | None:
        if self.negatives == "uniform":
            return None
        return (
            "learn from negatives that the read-out draws in the same step (--model.negatives uniform asks it nothing)"
        )

    # -- evaluation -----------------------------------------------------------------------------

    @override
    def neutral(self, images: Tensor) -> Tensor:
        return unit_length(self.label(images))

    @override
    def block_logits(self, images: Tensor) -> dict[str, Tensor]:
        """``energy``, if blocks that count have learned, and ``final``."""
        final = super().block_logits(images)  # first: what listens to blocks takes the first that it hears
        return {"energy": self.energies(images), **final} if self.learned >= self.read_from else final

    def energies(self, images: Tensor) -> Tensor:
        """Mean square of the activities of those blocks that count and have learned, with each label, ``(B, classes)``.

        Their sum is what is published; between labels of an image that makes no difference.
        """
        labels = torch.arange(self.num_classes, device=images.device).repeat(images.shape[0])
        rows = unit_length(self.label(images.repeat_interleave(self.num_classes, 0), labels))
        counted = islice(self.passing(rows), self.read_from - 1, self.learned)
        squares = torch.stack([activities.flatten(1).square().sum(1) for activities in counted]).sum(0)
        return squares.unflatten(0, (-1, self.num_classes)) / sum(self.widths[self.read_from - 1 : self.learned])

    @override
    def plan(self) -> StepPlan:
        """Two rows go through the blocks with a gradient, a third one without."""
        plan = super().plan()
        first, *others = plan.blocks
        forward = [1.5 * passes for passes in plan.forward_passes]
        return replace(plan, blocks=[nn.Sequential(self.label, first), *others], forward_passes=forward)
