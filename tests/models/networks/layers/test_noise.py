"""Noise on features: the stated statistics, in training only."""

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.networks.layers.noise import FeatureNoise
from models.networks.memory.saved_tensors import SavedTensorMeter


def features(seed=0):
    """Maps whose images, channels and positions all spread differently."""
    torch.manual_seed(seed)
    scale = torch.linspace(0.5, 3, 16).view(16, 1, 1, 1) * torch.linspace(1, 4, 32).view(1, 32, 1, 1)
    return scale * torch.randn(16, 32, 24, 24)


@pytest.mark.parametrize(
    ("kind", "dimensions", "shape"),
    [("all", (0, 1, 2, 3), (1, 1, 1, 1)), ("hw", (2, 3), (16, 32, 1, 1)), ("c", (1,), (16, 1, 24, 24))],
)
def test_noise_has_the_stated_deviation(kind, dimensions, shape):
    x = features()
    deviation = x.std(dimensions, correction=0, keepdim=True)
    assert deviation.shape == shape
    noise = (FeatureNoise(kind, 0.25)(x) - x) / (0.25 * deviation)  # standard normal, if the scale is right
    n = noise.numel()
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs(noise.std() - 1) < 4 / (2 * n) ** 0.5
    per_image = noise.flatten(1).std(1)  # in every image, not only on the whole
    assert (per_image - 1).abs().max() < 5 / (2 * n / 16) ** 0.5


def test_another_scale_would_be_noticed():
    x = features()
    per_image = (
        ((FeatureNoise("all", 0.25)(x) - x) / (0.25 * x.std((2, 3), correction=0, keepdim=True))).flatten(1).std(1)
    )
    assert (per_image - 1).abs().max() > 0.5


def test_noise_is_fresh_for_each_view_and_absent_in_evaluation():
    x, noise = features(), FeatureNoise("all", 0.25)
    assert not torch.equal(noise(x), noise(x))
    assert noise.eval()(x) is x


@pytest.mark.parametrize(("kind", "dimensions"), [("all", (0, 1, 2, 3)), ("hw", (2, 3)), ("c", (1,))])
def test_the_gradient_goes_through_the_deviation_too(kind, dimensions):
    x = torch.randn(3, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    torch.manual_seed(1)
    y = FeatureNoise(kind, 0.3)(x)
    (y * weight).sum().backward()
    normal = ((y - x) / (0.3 * x.std(dimensions, correction=0, keepdim=True))).detach()
    plain = x.detach().clone().requires_grad_()
    plain_y = plain + 0.3 * normal * plain.std(dimensions, correction=0, keepdim=True)
    (plain_y * weight).sum().backward()
    assert torch.allclose(x.grad, plain.grad, rtol=1e-10, atol=1e-12)
    assert (x.grad - weight).abs().max() > 0


def test_noise_keeps_its_input_only_and_the_memory_layout():
    x = features().contiguous(memory_format=torch.channels_last).requires_grad_()
    with SavedTensorMeter([x]) as meter:
        y = FeatureNoise("all")(x)
    assert meter.peak == 0
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["all", "hw", "c"])
def test_single_positions_and_constant_maps_stay_finite(kind):
    for x in (torch.rand(4, 8, 1, 1), torch.ones(4, 8, 2, 2)):
        x.requires_grad_()
        out = FeatureNoise(kind)(x)
        assert out.isfinite().all()
        out.sum().backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize(("kind", "dimensions"), [("all", (0, 1)), ("c", (1,))])
def test_vectors_get_noise_too(kind, dimensions):
    torch.manual_seed(0)
    x = torch.linspace(0.5, 3, 400).view(-1, 1) * torch.randn(400, 300)
    noise = (FeatureNoise(kind, 0.3)(x) - x) / (0.3 * x.std(dimensions, correction=0, keepdim=True))
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert abs(noise.std() - 1) < 4 / (2 * noise.numel()) ** 0.5


def test_positions_of_vectors_are_refused():
    with pytest.raises(NetworkError, match="kind all or c, not hw"):
        FeatureNoise("hw")(torch.randn(4, 6))


@pytest.mark.parametrize("disturb", [FeatureNoise("all", 0.3), nn.Dropout(0.2)])
def test_on_a_detached_input_nothing_is_kept(disturb):
    with SavedTensorMeter() as meter:
        y = disturb(features().detach())
    assert not y.requires_grad
    assert meter.peak == 0
