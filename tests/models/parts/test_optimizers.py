"""LARS, SGD by roles, Muon, and the triangle: the published rules, step by step, and their groups."""

import copy

import pytest
import torch
from torch import nn

from models.networks.airbench import Airbench
from models.parts.optimizers import BlockLARS, Muon, RoleSGD, by_role, orthogonalised
from models.parts.triangle import Triangle


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


# -- rates by role, Muon -------------------------------------------------------------------------------------------


def small_airbench():
    torch.manual_seed(0)
    return Airbench((3, 8, 8), 10, (4, 6)).double()


def test_roles():
    network = small_airbench()
    roles = by_role(network.parameters())
    names = {id(p): name for name, p in network.named_parameters()}
    assert [names[id(p)] for p in roles["shifts"]] == ["units.whiten.0.bias"]
    assert [names[id(p)] for p in roles["matrices"]] == ["classifier.1.weight"]
    assert len(roles["filters"]) == 4
    assert [p.shape for p in roles["vectors"]] == [(4,), (4,), (6,), (6,)]
    assert sum(map(len, roles.values())) == len([p for p in network.parameters() if p.requires_grad])


def train_airbench(network, optimizer, reduction, steps=3):
    torch.manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(16, 3, 8, 8, dtype=torch.float64), torch.randint(10, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y, label_smoothing=0.2, reduction=reduction).backward()
        optimizer.step()
    return [p.detach().clone() for p in network.parameters()]


def test_three_steps_of_the_summed_loss_are_three_of_the_mean_loss():
    """The released script sums; 11.5 and 0.0153 are per 1,024 images and decoupled from momentum 0.85."""
    batch, per_image = 16, 11.5 / (1024 * (1 + 1 / (1 - 0.85)))
    published = small_airbench()
    biases = [p for name, p in published.named_parameters() if p.requires_grad and name.endswith("bias")]
    norms = [p for p in biases if p.numel() != 24]
    others = [p for p in published.parameters() if p.requires_grad and all(p is not one for one in norms)]
    wd = 0.0153 * batch / 1024
    groups = [
        {"params": norms, "lr": 64 * per_image, "weight_decay": wd / (64 * per_image)},
        {"params": others, "lr": per_image, "weight_decay": wd / per_image},
    ]
    expected = train_airbench(published, torch.optim.SGD(groups, lr=1, momentum=0.85, nesterov=True), "sum")
    ours = small_airbench()
    lr = per_image * batch
    optimizer = RoleSGD(ours.parameters(), weight_lr=lr, vector_lr=64 * lr, shrinkage=wd)
    for one, other in zip(train_airbench(ours, optimizer, "mean"), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_defaults_are_those_of_the_94_recipe():
    """1.5 and 64 times that at 1,024 images, weight decay 1.330e-3 and 2.08e-5."""
    groups = {group["role"]: group for group in RoleSGD(small_airbench().parameters()).param_groups}
    assert groups["filters"]["lr"] == groups["shifts"]["lr"] == groups["matrices"]["lr"] == 1.5
    assert groups["vectors"]["lr"] == 96
    assert groups["filters"]["weight_decay"] == pytest.approx(1.330e-3, rel=1e-3)
    assert groups["vectors"]["weight_decay"] == pytest.approx(2.08e-5, rel=1e-3)
    assert all(group["nesterov"] and group["momentum"] == 0.85 for group in groups.values())


def test_orthogonalised_matrices_keep_singular_vectors():
    torch.manual_seed(0)
    for shape in ((5, 12), (12, 5)):
        matrix = torch.randn(shape, dtype=torch.float64)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        x = s / s.norm()
        for _ in range(3):
            x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
        torch.testing.assert_close(orthogonalised(matrix), u @ torch.diag(x) @ v, rtol=1e-5, atol=1e-6)
        assert x.min() > 0.3
        assert x.max() < 1.3


def test_steps_of_muon_are_those_of_the_released_script():
    """``airbench94_muon.py``, filter by filter and bias by bias."""
    published, batch, wd = small_airbench(), 16, 0.004
    roles = by_role(published.parameters())
    buffers = [torch.zeros_like(p) for p in roles["filters"]]
    sgd = torch.optim.SGD(
        [
            {"params": roles["vectors"] + roles["shifts"], "lr": 0.053, "weight_decay": wd / 0.053},
            {"params": roles["matrices"], "lr": 0.67, "weight_decay": wd / 0.67},
        ],
        momentum=0.85,
        nesterov=True,
    )

    class Script:
        def zero_grad(self):
            published.zero_grad()

        def step(self):
            sgd.step()
            for p, buffer in zip(roles["filters"], buffers, strict=True):
                g = p.grad
                buffer.mul_(0.6).add_(g)
                g = g.add(buffer, alpha=0.6)
                p.data.mul_(len(p.data) ** 0.5 / p.data.norm())
                x = g.reshape(len(g), -1)
                x = x / (x.norm() + 1e-7)
                flip = x.shape[0] > x.shape[1]
                x = x.T if flip else x
                for _ in range(3):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                p.data.add_((x.T if flip else x).view(g.shape), alpha=-0.24)

    expected = train_airbench(published, Script(), "sum")
    ours = small_airbench()
    optimizer = Muon(ours.parameters(), matrix_lr=0.67 * batch, vector_lr=0.053 * batch)
    for one, other in zip(train_airbench(ours, optimizer, "mean"), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)  # 1e-7 is added to norms of another scale


def test_default_rates_of_muon_are_the_scripts():
    """For 2,000 images; its classifier has weights 256/9 times ours, and logits 9/256 times as large."""
    groups = {group["role"]: group for group in Muon(small_airbench().parameters()).param_groups}
    assert (groups["filters"]["lr"], groups["filters"]["weight_decay"]) == (0.24, 0)
    assert groups["vectors"]["lr"] == groups["shifts"]["lr"] == pytest.approx(0.053 * 2000)
    assert groups["matrices"]["lr"] == pytest.approx(0.67 * 2000 * (9 / 256) ** 2, rel=1e-3)
    assert all(g["lr"] * g["weight_decay"] == pytest.approx(0.004) for r, g in groups.items() if r != "filters")


def test_muon_resumes_from_its_state():
    one, other = small_airbench(), small_airbench()
    first, second = Muon(one.parameters(), vector_lr=1.0, matrix_lr=1.0), Muon(other.parameters(), filter_lr=9.0)
    train_airbench(one, first, "mean")
    other.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for a, b in zip(train_airbench(one, first, "mean"), train_airbench(other, second, "mean"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [RoleSGD, Muon])
def test_what_has_one_role_only(make):
    weight = nn.Parameter(torch.ones(2, 3))
    weight.grad = torch.ones(2, 3)
    make([weight]).step(lambda: None)
    assert not torch.equal(weight, torch.ones(2, 3))


# -- the triangle --------------------------------------------------------------------------------------------------


def rates(schedule, optimizer, steps, group=0):
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[group]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_triangle_of_the_94_recipe():
    optimizer = RoleSGD(small_airbench().parameters(), weight_lr=1.0)
    found = rates(Triangle(optimizer), optimizer, 500)
    assert found[0] == pytest.approx(0.2)
    assert found[109] == pytest.approx(1.0)
    assert found[50] == pytest.approx(0.2 + 0.8 * 50 / 109)
    assert found[300] == pytest.approx(1 - 0.93 * (300 - 109) / (476 - 109))
    assert found[476:] == [pytest.approx(0.07)] * 24


def test_a_triangle_may_rise_to_its_end():
    optimizer = RoleSGD(small_airbench().parameters(), weight_lr=1.0)
    found = rates(Triangle(optimizer, steps=4, peak=1.0, start=0.0), optimizer, 7)
    assert found == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 0.07, 0.07])


def test_the_top_of_a_triangle_is_a_whole_step_rounded_down():
    optimizer = RoleSGD(small_airbench().parameters(), weight_lr=1.0)
    assert rates(Triangle(optimizer, steps=10, peak=0.17, end=0.1), optimizer, 3) == pytest.approx([0.2, 1.0, 0.9])


def test_triangle_of_the_muon_recipe():
    """Down from the first step; the whitening bias in three epochs of 25 steps."""
    optimizer = Muon(small_airbench().parameters())
    schedule = Triangle(optimizer, steps=200, peak=0, end=0, shift_steps=75)
    shifts = [group["role"] for group in optimizer.param_groups].index("shifts")
    assert rates(schedule, optimizer, 1) == [0.24]
    for _ in range(49):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.24 * (1 - 50 / 200))
    assert optimizer.param_groups[shifts]["lr"] == pytest.approx(106 * (1 - 50 / 75))
    assert rates(schedule, optimizer, 160, shifts)[25:] == [0.0] * 135
    assert optimizer.param_groups[0]["lr"] == 0.0
