"""Local learning with labels: every block's head predicts the class."""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from losses import CrossEntropy, OutputLossCallable, probabilities, top1
from losses.errors import UsageError
from models.local_learning import LocalLearning
from models.method import Classifier, LabelledImages
from models.networks.chain import Chain, NetworkCallable


class LocalClassification(Classifier, LocalLearning):
    """Every head gives logits, every block's loss is their output loss: cross-entropy, or another.

    Three predictions are evaluated: each block's own (``val/block<k>/top1``; a final head's: ``val/final/top1``), the
    model's, which is the last one's (``val/top1``), and, if several predict, their ensemble (``val/ensemble/top1``).
    Heads give logits ``(B, classes)``, or ``(B, G, classes)`` from G heads in one. Whatever the output loss is, a
    prediction is the largest logit, and what is averaged over groups and blocks is softmax(logits).

    All arguments but one are those of :class:`LocalLearning`.

    Args:
        output_loss: what the logits of every block are trained on, a class from ``losses``.

    Attributes:
        logits_of: part, counted from 0 → its logits in this training step, detached: for callbacks, such as those
            that choose samples by their loss (``model.checked_losses(model.logits_of[k], batch.labels)``).
    """

    has_ensemble = True

    def __init__(
        self,
        network: NetworkCallable,
        chain: Chain,
        num_classes: int,
        blocks: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        output_loss: OutputLossCallable = CrossEntropy,
        **training: Any,
    ) -> None:
        super().__init__(network, chain, num_classes, blocks, heads, **training)
        self.make_output_loss, self.output_loss = output_loss, output_loss()
        self.logits_of: dict[int, Tensor] = {}

    @override
    def local_loss(self, k: int, features: Tensor, batch: LabelledImages) -> Tensor:
        """Loss of block k's own prediction."""
        return self.loss_of_logits(k, self.heads[k](features), batch)

    def loss_of_logits(self, k: int, logits: Tensor, batch: LabelledImages) -> Tensor:
        """Loss of what block k predicts: the mean over the batch, of weighted losses if the batch has weights."""
        self.logits_of[k] = logits.detach()
        if self.logs_this_step:
            self.record(k, "top1", top1(probabilities(logits), batch.labels))
        if batch.weights is None:
            return self.prediction_loss(logits, batch.labels)
        return (batch.weights * self.checked_losses(logits, batch.labels)).mean()

    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of every sample, ``(B,)``: the output loss."""
        return self.output_loss(logits, labels)

    def checked_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """:meth:`sample_losses`, of which there is one per sample: a mean would pass for that of every sample.

        Raises:
            UsageError: there are more or fewer.
        """
        losses = self.sample_losses(logits, labels)
        if losses.shape != labels.shape:
            raise UsageError(
                f"sample_losses of {type(self).__name__} with {type(self.output_loss).__name__} must give the loss of "
                f"each of {len(labels)} samples, {tuple(labels.shape)}, not a tensor of shape {tuple(losses.shape)}: "
                'leave the mean out (reduction="none").'
            )
        return losses

    def prediction_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What training minimises and evaluation reports as ``…/loss``: the mean of the samples' losses."""
        return self.checked_losses(logits, labels).mean()

    @override
    def on_train_batch_start(self, batch: LabelledImages, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.logits_of.clear()

    @property
    @override
    def monitor(self) -> str | None:
        """The model's prediction; if blocks learn one after the other the last one's, since others' are of others."""
        return f"val/{self.part_names[-1]}/top1" if self.schedule.lengths else super().monitor

    @override
    def forward(self, images: Tensor) -> Tensor:
        """The model's prediction: logits ``(B, classes)`` of the last part that has learned.

        Raises:
            UsageError: that part does not predict.
        """
        features = deque(islice(self.walk(images), self.learned), maxlen=1).pop()
        logits = self.block_prediction(self.learned - 1, features)
        if logits is None:
            raise UsageError(
                f"Only {self.learned} of {self.schedule.parts} parts of the network have learned, and the last of them "
                "predicts no classes: go on training with --ckpt_path last."
            )
        return probabilities(logits).log() if logits.dim() == 3 else logits  # of several heads in one

    def block_prediction(self, k: int, features: Tensor) -> Tensor | None:
        """Logits of block k (counted from 0), or of a final head; None of a block that predicts nothing."""
        return self.heads[k](features)

    @override
    def block_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Name of each block that predicts, and ``final`` of a final head → its logits, in order.

        Parts that have not learned, since it was not their turn yet or they are ``frozen_blocks``, are left out.
        """
        logits: dict[str, Tensor | None] = {}
        features = images
        for k, features in enumerate(islice(self.walk(images), self.learned)):
            if k >= self.schedule.frozen:
                logits[self.part_names[k]] = self.block_prediction(k, features)
        if self.learned > self.num_blocks:
            logits["final"] = self.block_prediction(self.num_blocks, features)
        return {name: z for name, z in logits.items() if z is not None}

    @override
    def batch_means(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        losses = {f"{name}/loss": self.prediction_loss(z, labels) for name, z in logits.items()}
        return losses | {"loss": losses[f"{list(logits)[-1]}/loss"]}
