"""Metrics of predictions, exact over batches of any size and over processes that each evaluate a share of a split."""

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy


class EvaluationMetrics:
    """Top-1 and top-5 of every prediction, and means over the images, of one pass over a split.

    Which predictions there are may change from epoch to epoch (blocks that learn one by one): a metric comes into
    being with the name of what it judges.

    Args:
        num_classes: number of classes; where there are at most 5, top-5 is left out.
        device: where the predictions are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        top: dict[str, Metric | MetricCollection] = {
            f"top{k}": MulticlassAccuracy(num_classes, k, average="micro", validate_args=False)
            for k in ((1, 5) if num_classes > 5 else (1,))
        }
        self._new = MetricCollection(top, compute_groups=False).to(device)
        self._accuracies: dict[str, MetricCollection] = {}
        # Replaces NaN by NaN: "disable" would forget the weights, the others what is no number.
        self._means = defaultdict[str, MeanMetric](lambda: MeanMetric(nan_strategy=math.nan).to(device))

    @torch.no_grad()
    def update(self, predictions: Mapping[str, Tensor], labels: Tensor, means: Mapping[str, Tensor]) -> None:
        """Count a batch.

        Args:
            predictions: name (the model's own: empty) → logits or probabilities ``(B, classes)``.
            labels: int64 ``(B,)``.
            means: name → mean over the images of the batch, a scalar.
        """
        for name, prediction in predictions.items():
            if name not in self._accuracies:
                self._accuracies[name] = self._new.clone(prefix=f"{name}/" if name else None)
            self._accuracies[name].update(prediction, labels)
        for name, mean in means.items():
            self._means[name].update(mean, len(labels))

    def compute(self) -> dict[str, Tensor]:
        """``<prediction>/top1``, ``…/top5`` → share of the images, 0 … 1; the means under their names."""
        found: dict[str, Tensor] = {}
        for accuracy in self._accuracies.values():
            found |= accuracy.compute()
        return found | {name: mean.compute() for name, mean in self._means.items()}
