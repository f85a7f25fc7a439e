"""Local learning with labels: every block's head predicts the class."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from losses import ensemble, probabilities, top1
from models.local_learning import LabelledImages, LocalLearning


class LocalClassification(LocalLearning):
    """Every head gives logits, every block's loss is their cross-entropy with the label.

    Three predictions are evaluated: each block's own (``val/block<k>/top1``), the model's, which is
    the last one's (``val/top1``), and, if several predict, their ensemble (``val/ensemble/top1``).
    Heads give logits ``(B, classes)``, or ``(B, G, classes)`` from G heads in one.
    """

    def local_loss(self, k: int, features: Tensor, batch: LabelledImages) -> Tensor:
        """Loss of block k's own prediction."""
        logits = self.heads[k](features)
        if self.logs_this_step:
            self.record(k, "top1", top1(probabilities(logits), batch.labels))
        return self.prediction_loss(logits, batch.labels)

    def prediction_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What training minimises and evaluation reports as ``…/loss``: cross-entropy."""
        return F.cross_entropy(logits, labels)

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
        from models.backprop import Backprop  # a method itself

        options = {"checkpoint_segments": checkpoint_segments, "optimizer": self.make_optimizer}
        return Backprop(self.make_network, self.image_shape, self.num_classes, **options)

    @property
    def monitor(self) -> str:
        """The model's prediction on the validation images."""
        return "val/top1"

    def validation_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """Log ``val/…``."""
        self._evaluate("val", batch)

    def test_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """Log ``test/…``."""
        self._evaluate("test", batch)

    def predict_step(self, batch: LabelledImages, batch_idx: int) -> Tensor:
        """Class probabilities ``(B, classes)`` of the model's prediction."""
        return self(batch.images).softmax(dim=1)

    def _evaluate(self, split: str, batch: LabelledImages) -> None:
        figures = self.figures(self.block_logits(batch.images), batch.labels)
        self.log_dict({f"{split}/{name}": value for name, value in figures.items()}, batch_size=len(batch.labels))

    def figures(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """What is logged of the predictions that :meth:`block_logits` makes."""
        figures = {}
        for name, z in logits.items():
            figures[f"{name}/loss"] = self.prediction_loss(z, labels)
            figures[f"{name}/top1"] = top1(probabilities(z), labels)
        last = list(logits)[-1]
        figures |= {figure: figures[f"{last}/{figure}"] for figure in ("loss", "top1")}
        if len(logits) > 1:
            figures["ensemble/top1"] = top1(ensemble(list(logits.values())), labels)
        return figures
