"""Weights drawn anew before training."""

import pytest
import torch
from scipy import stats
from torch import nn

from experiments.callbacks.entropy import weights_of
from experiments.callbacks.initialisation import Initialisation
from experiments.distributed.entropy import h8


@pytest.mark.parametrize(
    ("distribution", "kurtosis", "bits"), [("uniform", 1.8, (7.9, 8)), ("normal", 3.0, (6.5, 7.2))]
)
def test_initialisation_keeps_std_and_changes_the_shape(distribution, kurtosis, bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200), nn.Conv2d(64, 64, 3))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    Initialisation(distribution).setup(None, model, "fit")
    for name, weight in weights_of(model).items():
        assert float(weight.std()) == pytest.approx(float(before[name].std()), rel=0.02)
        assert not torch.equal(weight, before[name])
        assert stats.kurtosis(weight.detach().flatten().numpy(), fisher=False) == pytest.approx(kurtosis, abs=0.1)
        assert bits[0] < h8(weight) < bits[1]
    untouched = set(before) - set(weights_of(model))
    assert all(torch.equal(model.get_parameter(name), before[name]) for name in untouched)


def test_initialisation_with_a_gain_in_training_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 200), nn.Conv2d(32, 64, 3), nn.Linear(3, 2))
    nn.init.zeros_(model[2].weight)
    before = model[0].weight.clone()
    Initialisation("normal", gain=2**0.5).setup(None, model, "test")
    assert torch.equal(model[0].weight, before)
    Initialisation("normal", gain=2**0.5).setup(None, model, "fit")
    assert float(model[0].weight.std()) == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert float(model[1].weight.std()) == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.02)
    assert not model[2].weight.any()  # as predsim's predictions


def test_torchs_own_weights_are_uniform_with_a_gain_of_one_over_the_root_of_three():
    """What the YAML of predsim's published recipe asks for."""
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 64, 3)
    own = float(layer.weight.abs().max())
    Initialisation("uniform", gain=0.57735).setup(None, layer, "fit")
    assert float(layer.weight.abs().max()) == pytest.approx(own, rel=1e-3) == pytest.approx((32 * 9) ** -0.5, rel=1e-3)
