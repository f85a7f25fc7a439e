"""Linear over-parameterization: the explicit stack of layers, the scale of the product, collapse, cost."""

import copy
from functools import partial

import pytest
import torch
from reference.overparameterized import explicit_stack
from torch import nn
from torch.nn.utils import parametrize

from losses.errors import NetworkError
from models.networks.layers.overparameterized import collapse, overparameterize
from models.networks.memory.profile import profile
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.resnet import CifarResNet
from models.networks.vgg import VGG

LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (5, 4, 7, 8)),
    "no bias": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), (5, 4, 7, 8)),
    "grouped": (lambda: nn.Conv2d(6, 9, 3, groups=3), (5, 6, 7, 8)),
    "linear": (lambda: nn.Linear(7, 5), (4, 7)),
}


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_product_is_the_stack_of_layers_with_its_gradients(kind, depth):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer = make().double()
    overparameterize(layer, depth)
    parameters = list(layer.parameters())
    assert len(parameters) == depth + (layer.bias is not None)
    x = torch.randn(shape, dtype=torch.float64)
    ours, theirs = layer(x), explicit_stack(layer, x)
    torch.testing.assert_close(ours, theirs)
    gradients = (torch.autograd.grad(y.sin().sum(), parameters) for y in (ours, theirs))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("layer", [nn.Conv2d(64, 128, 3), nn.Conv2d(64, 256, 3, groups=4), nn.Linear(300, 200)])
def test_product_starts_with_the_deviation_of_the_plain_weight(layer, depth):
    deviations = []
    for seed in range(20):
        torch.manual_seed(seed)
        trial = copy.deepcopy(layer)
        trial.reset_parameters()
        plain = trial.weight.std()
        overparameterize(trial, depth)
        deviations.append((trial.weight.std() / plain).item())
    assert sum(deviations) / len(deviations) == pytest.approx(1, abs=0.02)


def test_collapse_is_the_same_function_with_the_plain_networks_parameters():
    torch.manual_seed(0)
    network = partial(VGG, (3, 8, 8), 5, plan=(8, "M", 8), hidden=(6,))
    plain, product = network(), network()
    overparameterize(product, 3)
    assert set(product.state_dict()) != set(plain.state_dict())
    product(torch.randn(4, 3, 8, 8)).square().sum().backward()
    with torch.no_grad():
        for parameter in product.parameters():
            parameter -= 0.01 * parameter.grad
    product.eval()
    x = torch.randn(4, 3, 8, 8)
    before = product(x)
    collapse(product)
    assert torch.equal(product(x), before)
    plain.load_state_dict(product.state_dict())
    assert torch.equal(plain.eval()(x), before)
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in product.parameters())
    assert [type(module) for module in product.modules()] == [type(module) for module in plain.modules()]


def test_every_weight_of_a_residual_network_is_a_product():
    network = CifarResNet((3, 8, 8), 5, depth=8)
    overparameterize(network, 2)
    for layer in network.modules():
        assert parametrize.is_parametrized(layer) == isinstance(layer, nn.Conv2d | nn.Linear)


def test_a_depth_of_one_changes_nothing():
    layer = nn.Linear(3, 4)
    weight, state = layer.weight, torch.get_rng_state()
    overparameterize(layer, 1)
    collapse(layer)
    assert layer.weight is weight
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("depth", [0, 101, 10**12])
def test_depths_that_nobody_means_are_refused(depth):
    with pytest.raises(NetworkError, match=rf"1 factor \(plain\) to 100: .*, not {depth}\."):
        overparameterize(nn.Linear(3, 4), depth)


def test_no_activation_more_is_kept():
    """The batch does not count: only products of weights are kept, twice their bytes at most."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    product = copy.deepcopy(block)
    overparameterize(product, 2)
    weights = sum(layer.weight.numel() * 4 for layer in (block[0], block[2]))

    def kept(module, size):
        with SavedTensorMeter(module.parameters()) as meter:
            y = module(torch.randn(size, 4, 6, 6))
        assert y.requires_grad
        return meter.peak

    for size in (2, 32):
        assert 0 < kept(product, size) - kept(block, size) <= 2 * weights


def test_cost_of_a_product_can_be_told():
    block = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1))
    overparameterize(block, 2)
    ((cost, _),) = profile([block], (4, 6, 6))
    assert cost.output_shape == (8, 6, 6)
    assert cost.parameters == 4 * 8 * 9 + 8 * 8 + 8
