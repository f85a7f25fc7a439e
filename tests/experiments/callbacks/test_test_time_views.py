"""Predictions over several views: the weights, the slow way, what is logged."""

from functools import partial

import lightning.pytorch as L
import pytest
import torch
from helpers import fit, summary
from torch.nn import functional as F

from experiments.callbacks.test_time_views import TestTimeViews, weighted_views
from losses.errors import UsageError
from models.method import Classifier
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.heads.classifiers import LinearHead
from models.networks.vgg import VGG


def test_views_are_the_published_six():
    images = torch.randn(2, 3, 6, 5)
    views = list(weighted_views(images, 1))
    assert sum(weight for weight, _ in views) == 1
    assert [weight for weight, _ in views] == [0.25, 0.125, 0.125] * 2
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    one = [images, padded[:, :, :6, :5], padded[:, :, 2:, 2:]]
    padded = F.pad(images.flip(3), (1, 1, 1, 1), mode="reflect")
    mirrored = [images.flip(3), padded[:, :, :6, :5], padded[:, :, 2:, 2:]]
    assert all(torch.equal(ours, theirs) for (_, ours), theirs in zip(views, [*one, *mirrored], strict=True))


def test_accuracy_over_views_stands_beside_the_plain_one(tmp_path, monkeypatch):
    """Of a network that looks at one corner alone, by the mean of six views' logits."""
    folder = fit(tmp_path, "--trainer.callbacks+=TestTimeViews")
    metrics = summary(folder)["metrics"]
    for block in ("", "block1/", "block4/", "ensemble/"):
        assert 0 <= metrics[f"test/views/{block}top1"] <= 1
        assert f"test/{block}top1" in metrics
    assert metrics["test/views/top1"] == metrics["test/views/block4/top1"]


def test_logits_are_averaged_with_their_weights():
    class Corner:
        has_ensemble, num_classes, device, predictions = True, 2, torch.device("cpu"), Classifier.predictions

        def block_logits(self, images):
            corners = torch.stack([images[:, 0, 0, 0], torch.zeros(len(images))], dim=1)
            return {"block1": -3 * corners, "block2": corners}

        def log_dict(self, metrics):
            self.metrics = metrics

    images = torch.zeros(2, 1, 4, 4)
    images[0, 0, 0, 0], images[0, 0, 0, 3] = 1.0, -0.9  # 0.25 · (1 − 0.9) + shifted ones: of row and column 1, none
    images[1, 0, 0, 0], images[1, 0, 0, 3] = 1.0, -1.1
    trainer = type("T", (), {"precision_plugin": type("P", (), {"forward_context": staticmethod(torch.no_grad)})})
    views, model = TestTimeViews(), Corner()
    batch = type("B", (), {"images": images, "labels": torch.tensor([0, 1])})
    views.on_test_epoch_start(trainer, model)
    views.on_test_batch_end(trainer, model, None, batch, 0)
    views.on_test_epoch_end(trainer, model)
    assert float(model.metrics["test/views/top1"]) == 1.0
    assert float(model.metrics["test/views/block1/top1"]) == 0.0
    assert float(model.metrics["test/views/ensemble/top1"]) == 0.0  # the second counts twice, the first's are larger


def test_refusals():
    with pytest.raises(UsageError, match="predicts no classes"):
        TestTimeViews().setup(None, L.LightningModule(), "fit")
    model = DecoupledGreedy(partial(VGG, plan=(8, "M", 16)), (1, 8, 8), 10, 2, head=LinearHead)
    with pytest.raises(UsageError, match="cannot be shifted by 8"):
        TestTimeViews(8).setup(None, model, "fit")
