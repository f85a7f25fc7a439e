"""Filters that whiten: their outputs, what is fixed, resumed runs, refusals."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.optim import SGD
from training import train

from datamodules.digits import Digits
from experiments.callbacks.whitening import Whitening, whitening_filters
from losses.errors import UsageError
from models.methods.backprop import Backprop
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.airbench import Airbench
from models.networks.vgg import VGG

SMALL = partial(Airbench, widths=(4, 6))


def model(network=SMALL, method=Backprop, **options):
    torch.manual_seed(0)
    return method(network, (1, 8, 8), 10, optimizer=partial(SGD, lr=0.05), **options)


def test_whitened_patches_have_the_published_mean_square():
    """λ / (λ + eps) of every filter, filters uncorrelated, largest λ first."""
    torch.manual_seed(0)
    images = F.avg_pool2d(torch.randn(200, 3, 13, 13), 2, stride=1).contiguous()  # neighbours are correlated
    patches = F.unfold(images.double(), 2).transpose(1, 2).flatten(0, 1)
    values = torch.linalg.eigvalsh(patches.T @ patches / len(patches)).flip(0)
    answers = F.conv2d(images, whitening_filters(images, 2, eps=0.1)).transpose(0, 1).flatten(1).double()
    products = answers @ answers.T / answers.shape[1]
    torch.testing.assert_close(products, torch.diag(values / (values + 0.1)), rtol=1e-4, atol=1e-5)


def test_images_are_taken_by_pieces(monkeypatch):
    """A large image is a piece of its own: 1,100 × 320 numbers of three channels are more than 2^20."""
    torch.manual_seed(0)
    images, pieces, unfold = torch.randn(3, 3, 1100, 320), [], F.unfold
    monkeypatch.setattr(F, "unfold", lambda piece, side: pieces.append(len(piece)) or unfold(piece, side))
    filters = whitening_filters(images, 2, eps=0.1)
    assert pieces == [1, 1, 1]
    answers = F.conv2d(images, filters).transpose(0, 1).flatten(1)
    torch.testing.assert_close(answers @ answers.T / answers.shape[1], torch.eye(12) / 1.1, rtol=0.02, atol=0.01)


def test_training_begins_with_the_filters_and_keeps_them(tmp_path):
    """Of the first 100 training images, as the network reads them, and their negatives."""
    trained = model()
    drawn = trained.blocks[0].whiten[0].bias.detach().clone()
    data = Digits(batch_size=32)
    train(trained, tmp_path, data, [Whitening(images=100, zero_bias=False)])
    layer = trained.blocks[0].whiten[0]
    first = data.training_images.for_evaluation().__getitems__(torch.arange(100)).images
    filters = whitening_filters(data.normalised(first), 2, 5e-4)
    assert torch.equal(layer.weight, torch.cat([filters, -filters]))
    assert not torch.equal(layer.bias, drawn)  # which has learned


def test_the_bias_begins_at_zero_and_learns_for_some_epochs(tmp_path):
    def bias_after(epochs, **options):
        trained = model(method=DecoupledGreedy, num_blocks=2)
        train(trained, tmp_path, callbacks=[Whitening(100, **options)], max_epochs=epochs)
        return trained.blocks[0].whiten[0].bias

    assert bias_after(1, bias_epochs=2).any()
    assert torch.equal(bias_after(2, bias_epochs=2), bias_after(3, bias_epochs=2))
    assert not torch.equal(bias_after(2), bias_after(3))
    assert not bias_after(2, bias_epochs=1).requires_grad


def test_a_resumed_run_keeps_its_filters(tmp_path):
    whole = model()
    trainer = train(whole, tmp_path, callbacks=[Whitening(100)], max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = model()
    train(resumed, tmp_path, callbacks=[Whitening(50)], resume=tmp_path / "one.ckpt")
    assert torch.equal(resumed.blocks[0].whiten[0].weight, whole.blocks[0].whiten[0].weight)


@pytest.mark.parametrize(
    ("network", "images", "why"),
    [(partial(VGG, plan=(4, "M", 6)), 100, "does not begin with any"), (partial(Airbench, widths=(4,)), 3, "too few")],
)
def test_refusals(network, images, why, tmp_path):
    with pytest.raises(UsageError, match=why):
        train(model(network), tmp_path, callbacks=[Whitening(images)])
