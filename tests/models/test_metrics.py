"""Metrics of evaluation against all predictions at once."""

import math

import pytest
import torch
from torch.nn import functional as F

from models.metrics import EvaluationMetrics


@pytest.mark.parametrize("size", [1, 7, 16, 50])
def test_batches_of_any_size_add_up_to_the_whole_split(size):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 10, generator=generator), torch.randint(10, (50,), generator=generator)
    metrics = EvaluationMetrics(10, torch.device("cpu"))
    for z, y in zip(logits.split(size), labels.split(size), strict=True):
        metrics.update({"block1": z, "": z.flip(1)}, y, {"block1/loss": F.cross_entropy(z, y)})
    found = metrics.compute()
    right = logits.topk(5).indices == labels[:, None]
    assert set(found) == {"block1/top1", "block1/top5", "top1", "top5", "block1/loss"}
    assert found["block1/top1"].item() == pytest.approx(right[:, 0].float().mean().item())
    assert found["block1/top5"].item() == pytest.approx(right.any(1).float().mean().item())
    assert found["top1"].item() == pytest.approx((logits.flip(1).argmax(1) == labels).float().mean().item())
    assert found["block1/loss"].item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)


def test_five_classes_have_no_top5_and_a_loss_that_is_no_number_stays_one():
    metrics = EvaluationMetrics(5, torch.device("cpu"))
    for loss in (1.0, math.nan, 2.0):
        metrics.update({"block1": torch.eye(5)}, torch.arange(5), {"loss": torch.tensor(loss)})
    found = metrics.compute()
    assert set(found) == {"block1/top1", "loss"}
    assert found["loss"].isnan()
