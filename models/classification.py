"""Local learning with labels: every block's head predicts the class."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from losses import CrossEntropy, OutputLossCallable, ensemble, probabilities, top1
from losses.errors import UsageError
from models.local_learning import LocalLearning
from models.method import Classifier, LabelledImages
from models.networks.chain import Chain, NetworkCallable


class LocalClassification(Classifier, LocalLearning):
    """Every head gives logits, every block's loss is their output loss: cross-entropy, or another.

    Three predictions are evaluated: each block's own (``val/block<k>/top1``), the model's, which is
    the last one's (``val/top1``), and, if several predict, their ensemble (``val/ensemble/top1``).
    Heads give logits ``(B, classes)``, or ``(B, G, classes)`` from G heads in one. Whatever the output loss is, a
    prediction is the largest logit, and what is averaged over groups and blocks is softmax(logits).

    Args:
        network: what makes the network, uncut.
        chain: the network whose units the blocks are made of.
        num_classes: number of classes.
        blocks: the network, cut.
        heads: one per block, giving logits.
        output_loss: what the logits of every block are trained on, a class from ``losses``.
        training: optimizer, scheduler and the other arguments of :class:`LocalLearning`.

    Attributes:
        logits_of: block, counted from 0 → its logits in this training step, detached: for callbacks, such as those
            that choose samples by their loss (``model.checked_losses(model.logits_of[k], batch.labels)``).
    """

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

    def local_loss(self, k: int, features: Tensor, batch: LabelledImages) -> Tensor:
        """Loss of block k's own prediction: the mean over the batch, of weighted losses if the batch has weights."""
        logits = self.heads[k](features)
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

    def on_train_batch_start(self, batch: LabelledImages, batch_idx: int) -> None:
        """Forget the last step's logits."""
        super().on_train_batch_start(batch, batch_idx)
        self.logits_of.clear()

    def forward(self, images: Tensor) -> Tensor:
        """The model's prediction: logits ``(B, classes)`` of the last block."""
        for block in self.blocks:
            images = block(images)
        return self.heads[-1](images)

    def block_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Name of each block that predicts → its logits, in order."""
        logits = {}
        for name, block, head in zip(self.block_names, self.blocks, self.heads, strict=True):
            images = block(images)
            logits[name] = head(images)
        return logits

    def end_to_end(self, checkpoint_segments: int = 0) -> "LocalClassification":
        """The network under backpropagation, with its own classifier."""
        from models.methods.backprop import Backprop  # a method itself

        options = {"optimizer": self.make_optimizer, "output_loss": self.make_output_loss}
        return Backprop(self.make_network, self.image_shape, self.num_classes, checkpoint_segments, **options)

    def figures(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """What is logged of the predictions that :meth:`block_logits` makes."""
        losses = {f"{name}/loss": self.prediction_loss(z, labels) for name, z in logits.items()}
        figures = super().figures(logits, labels) | losses | {"loss": losses[f"{list(logits)[-1]}/loss"]}
        if len(logits) > 1:
            figures["ensemble/top1"] = top1(ensemble(list(logits.values())), labels)
        return figures
