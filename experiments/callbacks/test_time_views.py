"""Predictions averaged over several views of a test image."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from losses.errors import UsageError
from models.method import Classifier, LabelledImages
from models.metrics import EvaluationMetrics
from ranges import PositiveInt


class TestTimeViews(L.Callback):
    """Also judges the test images by their mean logits over six views: ``test/views/block<k>/top1``.

    A quarter each of an image and its mirror image, an eighth each of these shifted by a pixel up and left, and down
    and right, the border reflected (test-time augmentation of K. Jordan, arXiv 2404.00498, 2024). ``test/views/top1``
    is that of the model's prediction, beside the plain ``test/top1``, ``test/views/ensemble/top1`` that of all blocks.

    Args:
        shift: pixels.

    Raises:
        UsageError: a method without labels, or images that cannot be shifted so far.
    """

    __test__ = False  # pytest shall not take it for a test

    def __init__(self, shift: PositiveInt = 1) -> None:
        self.shift = shift

    @override
    def setup(self, trainer: L.Trainer, pl_module: Classifier, stage: str) -> None:
        if not isinstance(pl_module, Classifier):
            raise UsageError(f"{type(pl_module).__name__} predicts no classes: take the callback TestTimeViews out.")
        if min(pl_module.image_shape[1:]) <= self.shift:
            raise UsageError(f"Images of {pl_module.image_shape} cannot be shifted by {self.shift}: lower its shift.")

    @override
    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: Classifier) -> None:
        """Begin to count."""
        self._evaluation = EvaluationMetrics(pl_module.num_classes, pl_module.device)

    @override
    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Classifier,
        outputs: Any,
        batch: LabelledImages,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        total: dict[str, Tensor] = {}
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for weight, images in weighted_views(batch.images, self.shift):
                for name, logits in pl_module.block_logits(images).items():
                    total[name] = total.get(name, 0) + weight * logits.float()
        if total:
            self._evaluation.update(pl_module.predictions(total), batch.labels, {})

    @override
    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Classifier) -> None:
        pl_module.log_dict({f"test/views/{name}": value for name, value in self._evaluation.compute().items()})


def weighted_views(images: Tensor, shift: int) -> Iterator[tuple[float, Tensor]]:
    """Six views of images ``(B, C, H, W)`` of the same size, each with its weight; the weights add up to 1."""
    height, width = images.shape[2:]
    for oriented in (images, images.flip(-1)):
        yield 0.25, oriented
        padded = F.pad(oriented, [shift] * 4, mode="reflect")
        for start in (0, 2 * shift):
            yield 0.125, padded[:, :, start : start + height, start : start + width]
