"""LARS: the published rule, step by step, and its groups."""

import pytest
import torch
from torch import nn

from models.parts.optimizers import BlockLARS


def test_steps_are_the_published_rule():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    lr, decay, trust = 0.3, 1e-2, 0.002
    optimizer = BlockLARS(layer.parameters(), lr=lr, weight_decay=decay, trust_coefficient=trust)
    expected = {name: p.detach().clone() for name, p in layer.named_parameters()}
    momentum = {name: torch.zeros_like(p) for name, p in expected.items()}
    for _ in range(3):
        x = torch.randn(8, 4, dtype=torch.float64)
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        for name, p in layer.named_parameters():
            g = p.grad.clone()
            if p.ndim > 1:
                # lightly's denominator is |g| + decay |p|, the published one |g + decay p|.
                ratio = trust * p.norm() / (g.norm() + decay * p.norm() + 1e-8)
                g = ratio * (g + decay * p.detach())
            momentum[name] = 0.9 * momentum[name] + g
            expected[name] -= lr * momentum[name]
        optimizer.step()
        for name, p in layer.named_parameters():
            assert torch.allclose(p, expected[name], rtol=1e-12, atol=1e-14), name


def test_the_published_denominator_is_the_same_at_the_published_decay():
    """There |g + decay p|, here |g| + decay |p|: of the order of decay |p| / |g| apart."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(30, 20, dtype=torch.float64))
    gradient = 0.01 * torch.randn_like(weight)
    decayed = gradient + 1e-6 * weight.detach()
    expected = weight.detach() - 1.6 * 0.001 * weight.detach().norm() / decayed.norm() * decayed
    weight.grad = gradient.clone()
    BlockLARS([weight], lr=1.6).step()
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-3 * 1.6e-3 * expected.abs().max())
    assert not torch.equal(weight.detach(), expected)


def test_vectors_have_their_own_rate_if_there_are_any():
    layer = nn.Linear(4, 3)
    optimizer = BlockLARS(layer.parameters(), lr=0.2, vector_lr=0.024)
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [
        (0.2, 1e-6, 1),
        (pytest.approx(0.0048), 0.0, 1),
    ]
    assert len(BlockLARS([layer.weight], lr=0.1).param_groups) == 1


def test_no_weight_decay_is_refused():
    with pytest.raises(ValueError, match="weight_decay above 0"):
        BlockLARS([nn.Parameter(torch.ones(2, 2))], lr=0.1, weight_decay=0)
