"""What is computed again gives the plain module's gradients, and is not kept."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD
from training import train

from datamodules.batch import Batch
from experiments.measure.cost import network_cost
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.layerwise import Layerwise
from models.networks.heads.classifiers import AuxHead, LinearHead, MLPSRHead
from models.networks.layers.pooling import GlobalAveragePool
from models.networks.memory.recomputed import Recomputed, recompute
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.vgg import VGG, VGG8b

SHAPE, CLASSES = (3, 8, 8), 5
small_vgg = partial(VGG, plan=(8, 8, "M", 16, 16), hidden=(12,))

TAILS = {
    "relu": [nn.BatchNorm2d(6), nn.ReLU(inplace=True)],
    "leaky, max": [nn.BatchNorm2d(6), nn.LeakyReLU(0.1), nn.MaxPool2d(2)],
    "no affine map": [nn.BatchNorm2d(6, affine=False), nn.ReLU(), nn.AvgPool2d(2)],
    "cumulative mean": [nn.BatchNorm2d(6, momentum=None), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((2, 3))],
    "no running statistics": [nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU(), GlobalAveragePool()],
    "pool first": [nn.BatchNorm2d(6), nn.MaxPool2d(3, stride=2, padding=1), nn.LeakyReLU(0.3, inplace=True)],
    "no BatchNorm": [nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.LeakyReLU(0.2, inplace=True)],
}


def pair(tail, dtype=torch.float64):
    """A convolution and a tail, plain and recomputed in pieces of two images."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), *copy.deepcopy(tail)).to(dtype)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    mebibytes = 2 * 6 * 8 * 8 * torch.finfo(dtype).bits / 8 / 2**20
    return plain, Recomputed(copy.deepcopy(plain), mebibytes)


def maps(count=7, dtype=torch.float64, memory_format=torch.channels_last):
    x = 3 + torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype, memory_format=memory_format).requires_grad_()


def gradients(module, x):
    y = module(x)
    loss = (torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y) * y).sum()
    once, again = (torch.autograd.grad(loss, [x, *module.parameters()], retain_graph=True) for _ in range(2))
    torch.testing.assert_close(again, once, rtol=0, atol=0)
    return y, once


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_output_gradients_and_statistics_are_the_plain_modules(tail, training, memory_format):
    plain, ours = pair(tail)
    for mode in (True, training):  # the second time with running statistics that have moved
        (y, expected), (z, found) = (
            gradients(module.train(mode), maps(memory_format=memory_format)) for module in (plain, ours)
        )
    torch.testing.assert_close(z, y, rtol=0, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert z.stride() == y.stride()
    assert [g.stride() for g in found] == [g.stride() for g in expected]
    assert list(ours.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(ours(maps()), plain(maps()))


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_single_precision_is_close(tail):
    (y, expected), (z, found) = (gradients(module, maps(dtype=torch.float32)) for module in pair(tail, torch.float32))
    torch.testing.assert_close(z, y, rtol=0, atol=0)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_half_precision_is_as_near_to_the_exact_gradients_as_the_plain_module(tail):
    """Both round to bfloat16 in their own order, and how far off that ends depends on the processor."""
    plain, ours = pair(tail, torch.float32)
    _, exact = gradients(copy.deepcopy(plain).double(), maps())
    with torch.autocast("cpu", torch.bfloat16):
        (y, expected), (z, found) = (gradients(module, maps(dtype=torch.float32)) for module in (plain, ours))
    assert z.dtype == y.dtype
    torch.testing.assert_close(z, y, rtol=0, atol=0)
    torch.testing.assert_close(found[0], expected[0], rtol=0.02, atol=0.02 * float(expected[0].abs().max()))
    for one, other, true in zip(found, expected, exact, strict=True):
        assert (one - true).norm() <= 1.1 * (other - true).norm()


def test_a_map_that_varies_not_and_one_image():
    plain, ours = pair(TAILS["leaky, max"])
    for module in (plain, ours):
        nn.init.zeros_(module[0].weight)
    torch.testing.assert_close(gradients(ours, maps(1)), gradients(plain, maps(1)), rtol=1e-9, atol=1e-9)


def test_weights_in_half_precision_err_no_more_than_the_plain_module():
    plain, ours = (module.bfloat16() for module in pair(TAILS["leaky, max"]))
    x = maps(dtype=torch.bfloat16)
    _, exact = gradients(copy.deepcopy(plain).double(), x.detach().double().requires_grad_())
    (_, expected), (_, found) = gradients(plain, x), gradients(ours, x)
    for one, other, truth in zip(found, expected, exact, strict=True):
        assert one.dtype == other.dtype
        assert (one - truth).norm() < 1.2 * (other - truth).norm() + 1e-3 * truth.norm()


def test_only_the_convolutions_input_and_output_are_kept():
    def held(module):
        with SavedTensorMeter([*module.parameters(), *module.buffers()]) as meter:
            y = module(x)
            forward = meter.current
            y.sum().backward()
        return forward, meter.peak

    plain, ours = pair(TAILS["leaky, max"])
    x = maps(16)
    image_in, image_out = 3 * 64 * 8, 6 * 64 * 8
    forward, peak = held(ours)
    assert forward == 16 * (image_in + image_out)
    piece = 2 * (image_out + image_out + image_out // 4 + image_out // 4)  # normalised, activated, pooled, its indices
    assert forward < peak <= forward + piece + 3 * 6 * 8
    assert held(plain)[0] > 16 * (image_in + 3 * image_out)


def test_only_sequentials_with_something_to_recompute_are_replaced():
    network = recompute(VGG8b((3, 32, 32), CLASSES, width=0.05))
    assert all(type(unit) is Recomputed for unit in network.units)
    assert type(network.units) is nn.Sequential
    assert list(network.state_dict()) == list(VGG8b((3, 32, 32), CLASSES, width=0.05).state_dict())
    assert type(recompute(AuxHead((8, 4, 4), CLASSES))) is Recomputed
    assert type(recompute(LinearHead((8, 4, 4), CLASSES))) is LinearHead
    head = MLPSRHead((8, 4, 4), CLASSES)
    assert [*recompute(head)] == [*head]
    lone = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    assert recompute(lone) is lone


# -- in the loop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [partial(Layerwise, epochs_per_block=1), partial(DecoupledGreedy, num_blocks=3)])
def test_training_gives_the_same_weights(method, tmp_path):
    def trained(**options):
        torch.manual_seed(0)
        optimizer = partial(SGD, lr=0.05, momentum=0.9)
        model = method(small_vgg, (1, 8, 8), 10, optimizer=optimizer, head=partial(AuxHead, hidden=8), **options)
        train(model, tmp_path, max_epochs=len(model.blocks), limit_train_batches=2, limit_val_batches=0)
        return model

    plain, ours = trained(), trained(recompute=True)
    assert any(type(part) is Recomputed for part in ours.blocks.modules())
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", [LinearHead, partial(AuxHead, hidden=8)], ids=["linear", "1c2f"])
def test_cost_predicts_the_bytes_of_a_step(head, monkeypatch):
    model = DecoupledGreedy(small_vgg, SHAPE, CLASSES, num_blocks=3, head=head, recompute=True).train()
    peaks = []

    def measured_step(k, loss):
        loss.backward()
        peaks.append(meter.peak)
        meter.peak = 0

    monkeypatch.setattr(model, "update_block", measured_step)
    with SavedTensorMeter([*model.parameters(), *model.buffers()]) as meter:
        images = torch.randn(64, *SHAPE).contiguous(memory_format=torch.channels_last)
        model.training_step(Batch(images, torch.randint(CLASSES, (64,))), 0)
    cost = network_cost(model, 64)
    of_the_loss = 64 * CLASSES * 4 + 64 * 8 + 4  # log-probabilities, labels, sum of weights
    of_the_piece = 2 * 4 * 16  # BatchNorm in evaluation keeps statistics again on the meta device, not on a CPU
    for node, peak in zip(cost.nodes, peaks, strict=True):
        assert node.activation_bytes - of_the_piece <= peak <= node.activation_bytes + of_the_loss
    plain = network_cost(DecoupledGreedy(small_vgg, SHAPE, CLASSES, num_blocks=3, head=head), 64)
    assert cost.peak_activation_bytes < plain.peak_activation_bytes
    assert cost.backprop_activation_bytes == plain.backprop_activation_bytes
    assert [node.forward_macs for node in cost.nodes] == [node.forward_macs for node in plain.nodes]


def test_layerwise_vgg8b_needs_three_tenths_of_backpropagations_activations():
    with torch.device("meta"):
        model = Layerwise(VGG8b, (3, 32, 32), 10, head=LinearHead, recompute=True)
    assert network_cost(model, 128).predicted_memory_ratio <= 0.30
