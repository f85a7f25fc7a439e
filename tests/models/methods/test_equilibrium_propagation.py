"""Equilibrium propagation: its update against formulas and against backpropagation through the settling."""

from dataclasses import fields
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import SGD
from training import assert_equal_weights, train

from datamodules.batch import Batch
from datamodules.digits import Digits
from losses.errors import NetworkError, UsageError
from losses.winners import WinnerTakeAll
from models.methods.equilibrium_propagation import EquilibriumPropagation
from models.networks.mlp import MLP
from models.networks.vgg import VGG
from models.parts.settling import Settling, drawn_masks


def layers(*hidden, **options):
    return partial(MLP, hidden=[*hidden], batch_norm=False, clamped=True, **options)


def made(network, image_shape=(1, 8, 8), **options):
    torch.manual_seed(0)
    rule = options.pop("target", {"winners": 2})
    phases = Settling(**{f.name: options.pop(f.name) for f in fields(Settling) if f.name in options})
    options = {"outputs": 20, "init_gain": 0.5, "optimizer": partial(SGD, lr=0.05), "settling": phases, **options}
    return EquilibriumPropagation(network, image_shape, 10, target=partial(WinnerTakeAll, **rule), **options)


def interior(model):
    """Weights and biases for which no state is clamped."""
    for layer in model.layers:
        layer.weight.data.uniform_(-0.02, 0.02)
        layer.bias.data.fill_(0.5)
    return model.double()


def masks_of(model, x):
    """Of pixels, units and outputs, as a step draws them."""
    masks = drawn_masks((model.blocks[0], model.heads[0]), x)
    return [*masks, model.target(0).mask(x.new_empty(len(x), model.outputs))]


def gradients(model, x):
    model.local_loss(0, model.block_output(0, x), Batch(x, torch.zeros(len(x)))).backward()
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize(("beta", "factor"), [(0.2, 0.780), (-0.2, 1.031)])
def test_the_update_of_one_layer_is_that_of_the_formula(beta, factor):
    model, x = interior(made(layers(), free_steps=200, beta=beta)), torch.rand(5, 1, 4, 16).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randint", lambda *_: torch.tensor(0))  # the sign is +
        weight, bias = gradients(model, x)
    y = model.layers[0](x.flatten(1)).detach()
    error = WinnerTakeAll(20, winners=2).double()(y, torch.ones_like(y)) - y
    exact = (1 - (1 - 0.2 * (1 + beta)) ** 10) / (1 + beta)
    assert exact == pytest.approx(factor, abs=5e-4)
    torch.testing.assert_close(-weight, exact * error.T @ x.flatten(1) / 5)
    torch.testing.assert_close(-bias, exact * error.mean(0))


def through_time(model, x, target):
    """Gradient of ½ ‖y − T‖² / B through all the settling."""
    y = model.settling.free(model.layers, x)[-1]
    return torch.autograd.grad((y - target).square().sum() / 2 / len(x), [*model.parameters()])


@pytest.mark.parametrize("nudging", ["random_sign", "symmetric"])
def test_towards_small_nudges_the_update_is_that_of_backpropagation(nudging):
    x, distances = torch.rand(4, 1, 8, 8).double(), []
    for beta in (0.1, 0.01, 0.001):
        model = interior(made(layers(12, 16), free_steps=300, nudged_steps=300, beta=beta, nudging=nudging))
        with torch.no_grad():
            y = model.settling.free(model.layers, x.flatten(1))[-1]
        target = WinnerTakeAll(20, winners=2).double()(y, torch.ones_like(y))
        theirs = through_time(model, x.flatten(1), target)
        pairs = zip(gradients(model, x), theirs, strict=True)
        distances.append(max(((a - b).norm() / b.norm()).item() for a, b in pairs))
    order = 100 if nudging == "symmetric" else 10  # an error of β² in place of β
    assert distances[1] / distances[2] == pytest.approx(order, rel=0.1)
    assert distances[1] < 1 / order


def test_states_settle_at_what_draws_them():
    model, x = interior(made(layers(12, 16), free_steps=300)), torch.rand(3, 64).double()
    s1, s2, y = model.settling.free(model.layers, x)
    w1, w2, w3 = model.layers
    torch.testing.assert_close(s1, w1(x) + s2 @ w2.weight)
    torch.testing.assert_close(s2, w2(s1) + y @ w3.weight)
    torch.testing.assert_close(y, w3(s2))


def test_states_stay_between_zero_and_one():
    model, x = made(layers(3), outputs=4, free_steps=100, nudged_steps=100), torch.zeros(2, 64)
    for layer, bias in zip(model.layers, ([-5.0, 5.0, 0.3], [-0.5, 0.4, 9.0, -9.0]), strict=True):
        layer.weight.data.zero_()
        layer.bias.data = torch.tensor(bias)
    free = model.settling.free(model.layers, x)
    half, ones = ([torch.full_like(s, value) for s in free] for value in (0.5, 1.0))
    [(_, others)] = model.settling.nudged(model.layers, x, half, ones, torch.zeros_like)
    for hidden, outputs in (free, others):
        torch.testing.assert_close(hidden, torch.tensor([[0.0, 1.0, 0.3]] * 2))
        torch.testing.assert_close(outputs, torch.tensor([[0.0, 0.4, 1.0, 0.0]] * 2))


def test_the_loss_is_the_mean_square_error_of_the_free_outputs():
    model, x = interior(made(layers(12))), torch.rand(4, 1, 8, 8).double()
    loss = model.local_loss(0, model.block_output(0, x), Batch(x, torch.zeros(4)))
    y = model.block_features(x)["block1/outputs"]
    target = WinnerTakeAll(20, winners=2).double()(y, torch.ones_like(y))
    torch.testing.assert_close(loss, (y - target).square().mean())


def test_pixels_that_are_left_out_teach_nothing():
    model, x = interior(made(layers(12, input_dropout=0.5))), torch.rand(1, 1, 8, 8).double() + 0.1
    torch.manual_seed(1)
    pixels = masks_of(model, x.flatten(1))[0][0] > 0
    torch.manual_seed(1)
    weight, *_ = gradients(model, x)
    assert 0 < pixels.sum() < 64
    assert torch.equal(weight.any(0), pixels)


def test_masked_units_stay_at_rest_and_learn_nothing():
    model = interior(made(layers(12, dropout=0.5), free_steps=5, target={"winners": 2, "dropout": 0.5}))
    x = torch.rand(1, 1, 8, 8).double()
    torch.manual_seed(1)
    _, hidden, outputs = masks_of(model, x.flatten(1))
    assert 0 < hidden.mean() < 1
    assert 0 < outputs.mean() < 1
    torch.manual_seed(1)
    w1, _, w2, _ = gradients(model, x)
    assert torch.equal(w1.any(1), hidden[0] > 0)
    assert torch.equal(w2.any(1), outputs[0] > 0)
    assert not w2[:, hidden[0] == 0].any()


def test_pixels_and_units_are_left_out_by_their_own_shares():
    network = layers(400, input_dropout=0.3, dropout=0.1)
    masks = masks_of(made(network, outputs=500, target={"dropout": 0.2}), torch.rand(100, 64))
    assert [mask.mean().item() for mask in masks] == pytest.approx([0.7, 0.9, 0.8], abs=0.02)


def test_thresholds_learn_nothing_of_outputs_that_are_left_out():
    target = {"winners": 2, "rate": 1.0, "smoothing": 0.5, "dropout": 0.5}
    model, x = interior(made(layers(12), target=target)), torch.rand(1, 1, 8, 8).double()
    torch.manual_seed(1)
    outputs = masks_of(model, x.flatten(1))[-1][0]
    torch.manual_seed(1)
    gradients(model, x)
    fallen = -0.5 * 2 / 20  # by the share that is usual
    assert torch.equal((model.target(0).threshold - fallen).abs() < 1e-9, outputs == 0)


def test_the_sign_of_the_nudge_is_drawn_for_each_batch(tmp_path, monkeypatch):
    found, nudged = [], Settling.nudged

    def noted(self, *args):
        found.append(nudged(self, *args))
        return found[-1]

    monkeypatch.setattr(Settling, "nudged", noted)
    train(made(layers()), tmp_path, Digits(batch_size=16), limit_train_batches=10, limit_val_batches=0)
    assert {beta for [(beta, _)] in found} == {0.2, -0.2}


def test_outputs_learn_their_targets_and_a_resumed_run_the_same(tmp_path):
    def run(resume=None):
        model = made(layers(30), target={"winners": 2, "smoothing": 0.3, "dropout": 0.2})
        saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=60)
        options = {"callbacks": [saved], "enable_checkpointing": True, "limit_train_batches": 1.0}
        data = Digits(batch_size=16, mean=[0.0], std=[1.0])
        return model, train(model, tmp_path, data, resume=resume, **options)

    model, trainer = run()
    assert_equal_weights(model, run(tmp_path / "step=120.ckpt")[0])
    assert trainer.callback_metrics["train/block1/win_entropy"] > 0.9
    shapes = {name: z.shape for name, z in model.block_features(torch.rand(2, 1, 8, 8)).items()}
    assert shapes == {"block1/gap": (2, 30), "block1/outputs": (2, 20)}


def test_other_networks_are_refused():
    with pytest.raises(NetworkError, match="this network has a Conv2d"):
        made(partial(VGG, plan=(8, "M", 8)))
    with pytest.raises(NetworkError, match="this network has a ReLU"):
        made(partial(MLP, hidden=[8], batch_norm=False))
    with pytest.raises(UsageError, match="leave num_blocks at 1"):
        made(layers(8, 8), num_blocks=2)
