"""Noise on features: the stated statistics, in training only."""

import pytest
import torch

from models.networks import FeatureNoise


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
    assert FeatureNoise("none")(x) is x


def test_the_deviation_is_not_detached():
    x = features().requires_grad_()
    torch.manual_seed(1)
    FeatureNoise("all", 0.25)(x).sum().backward()
    assert (x.grad - 1).abs().max() > 0


@pytest.mark.parametrize("kind", ["all", "hw", "c"])
def test_single_positions_and_constant_maps_stay_finite(kind):
    for x in (torch.rand(4, 8, 1, 1), torch.ones(4, 8, 2, 2)):
        x.requires_grad_()
        out = FeatureNoise(kind)(x)
        assert out.isfinite().all()
        out.sum().backward()
        assert x.grad.isfinite().all()
