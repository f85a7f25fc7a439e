"""Local learning with labels: every block's head predicts the class."""

from torch import Tensor
from torch.nn import functional as F

from losses import ensemble, top1
from models.local_learning import LabelledImages, LocalLearning


class LocalClassification(LocalLearning):
    """Every head gives logits, every block's loss is their cross-entropy with the label.

    Three predictions are evaluated: each block's own (``val/block<k>/top1``), the model's, which is
    the last block's (``val/top1``), and the ensemble of all blocks (``val/ensemble/top1``).
    """

    def local_loss(self, k: int, features: Tensor, batch: LabelledImages) -> Tensor:
        """Cross-entropy of block k's own prediction."""
        logits = self.heads[k](features)
        if self.logs_this_step:
            self.record(k, "top1", top1(logits, batch.labels))
        return F.cross_entropy(logits, batch.labels)

    def forward(self, images: Tensor) -> Tensor:
        """The model's prediction: logits ``(B, classes)`` of the last block."""
        for block in self.blocks:
            images = block(images)
        return self.heads[-1](images)

    def block_logits(self, images: Tensor) -> list[Tensor]:
        """Logits ``(B, classes)`` of every block, first block first."""
        logits = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            images = block(images)
            logits.append(head(images))
        return logits

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
        logits, labels = self.block_logits(batch.images), batch.labels
        figures = {}
        for k, z in enumerate(logits, start=1):
            figures[f"{split}/block{k}/loss"] = F.cross_entropy(z, labels)
            figures[f"{split}/block{k}/top1"] = top1(z, labels)
        figures[f"{split}/loss"] = figures[f"{split}/block{len(logits)}/loss"]
        figures[f"{split}/top1"] = figures[f"{split}/block{len(logits)}/top1"]
        figures[f"{split}/ensemble/top1"] = top1(ensemble(logits), labels)
        self.log_dict(figures, batch_size=len(labels))
