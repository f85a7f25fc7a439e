"""Noise on features: the stated statistics, in training only."""

import pytest
import torch

from losses.errors import NetworkError
from models.networks.layers.noise import FeatureNoise
from models.networks.memory.saved_tensors import SavedTensorMeter

DIMENSIONS = {"all": (0, 1, 2, 3), "hw": (2, 3), "c": (1,)}


def maps():
    """Maps whose images, channels and positions all spread differently."""
    torch.manual_seed(0)
    scale = torch.linspace(0.5, 3, 16).view(16, 1, 1, 1) * torch.linspace(1, 4, 32).view(1, 32, 1, 1)
    return scale * torch.randn(16, 32, 24, 24)


def vectors():
    torch.manual_seed(0)
    return torch.linspace(0.5, 3, 16).view(-1, 1) * torch.randn(16, 8000)


def normal(x, y, dimensions, sigma):
    """The standard normal numbers that were added, if the scale is right."""
    return (y - x) / (sigma * x.std(dimensions, correction=0, keepdim=True))


@pytest.mark.parametrize(
    ("kind", "make", "dimensions"),
    [
        *((kind, maps, dimensions) for kind, dimensions in DIMENSIONS.items()),
        ("all", vectors, (0, 1)),
        ("c", vectors, (1,)),
    ],
)
def test_noise_has_the_stated_deviation(kind, make, dimensions):
    x = make()
    noise = normal(x, FeatureNoise(kind, 0.25)(x), dimensions, 0.25)
    n = noise.numel()
    assert abs(noise.mean()) < 4 / n**0.5
    assert abs(noise.std() - 1) < 4 / (2 * n) ** 0.5
    per_image = noise.flatten(1).std(1)  # in every image, not only on the whole
    assert (per_image - 1).abs().max() < 5 / (2 * n / 16) ** 0.5


def test_noise_is_fresh_for_each_view_and_absent_in_evaluation():
    x, noise = maps(), FeatureNoise("all", 0.25)
    assert not torch.equal(noise(x), noise(x))
    assert noise.eval()(x) is x


@pytest.mark.parametrize(("kind", "dimensions"), DIMENSIONS.items())
def test_the_gradient_goes_through_the_deviation_too(kind, dimensions):
    x = torch.randn(3, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    y = FeatureNoise(kind, 0.3)(x)
    plain_y = x + 0.3 * normal(x, y, dimensions, 0.3).detach() * x.std(dimensions, correction=0, keepdim=True)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), x)[0] for out in (y, plain_y))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert (ours - weight).abs().max() > 0


@pytest.mark.parametrize("detached", [True, False])
def test_noise_keeps_its_input_only_and_the_memory_layout(detached):
    x = maps().contiguous(memory_format=torch.channels_last).requires_grad_(not detached)
    with SavedTensorMeter([] if detached else [x]) as meter:
        y = FeatureNoise("all")(x)
    assert meter.peak == 0
    assert y.requires_grad != detached
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", DIMENSIONS)
@pytest.mark.parametrize("x", [torch.rand(4, 8, 1, 1), torch.ones(4, 8, 2, 2)], ids=["one position", "constant"])
def test_single_positions_and_constant_maps_stay_finite(kind, x):
    x = x.clone().requires_grad_()
    out = FeatureNoise(kind)(x)
    assert out.isfinite().all()
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_positions_of_vectors_are_refused():
    with pytest.raises(NetworkError, match="kind all or c, not hw"):
        FeatureNoise("hw")(torch.randn(4, 6))
