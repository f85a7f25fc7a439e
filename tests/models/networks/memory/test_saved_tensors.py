"""The meter of the bytes that autograd holds."""

import pytest
import torch
from torch import nn

from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.resnet import CifarResNet

DEPTH, BATCH, WIDTH = 4, 5, 7
ROW = BATCH * WIDTH * 4
"""Bytes of one layer's activations."""
HELD = (DEPTH + 1) * ROW
"""Bytes of a chain's: its input and every ReLU's output."""


def chain(inplace=False):
    torch.manual_seed(0)
    return nn.Sequential(*(m for _ in range(DEPTH) for m in (nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace))))


@pytest.mark.parametrize(("inplace", "device"), [(False, "cpu"), (True, "cpu"), (False, "meta")])
def test_a_chain_holds_its_input_and_every_relu_output_until_it_is_let_go(inplace, device):
    net, images = chain(inplace).to(device), torch.randn(BATCH, WIDTH, device=device)
    with SavedTensorMeter(net.parameters()) as meter:
        loss = net(images).sum()
        assert meter.current == meter.peak == HELD
        assert sorted(meter.alive.values()) == [ROW] * (DEPTH + 1)
        loss.backward(retain_graph=True)
        assert meter.current == HELD
        loss.backward()
        assert (meter.current, meter.alive, meter.peak) == (0, {}, HELD)
        loss = net(images)
    assert meter.current == HELD
    del loss  # the graph, without a backward pass
    assert (meter.current, meter.alive) == (0, {})


def test_parameters_and_buffers_do_not_count():
    net, images = chain(), torch.randn(BATCH, WIDTH)
    with SavedTensorMeter() as everything:
        net(images).sum().backward()
    # The first layer's weight is not needed: the images want no gradient.
    assert everything.peak == HELD + (DEPTH - 1) * WIDTH * WIDTH * 4
    norm, statistics = nn.BatchNorm1d(WIDTH), 2 * WIDTH * 4
    with SavedTensorMeter([*norm.parameters(), *norm.buffers()]) as meter:
        norm(images).sum().backward()
    assert meter.peak == ROW + statistics  # its input, mean and deviation of the batch
    with SavedTensorMeter(norm.parameters()) as meter:
        norm(images).sum().backward()
    assert meter.peak == ROW + 2 * statistics  # and the running ones


def test_a_storage_counts_once_and_whole_until_the_last_graph_goes():
    x = torch.randn(8, 6, requires_grad=True)
    with SavedTensorMeter() as meter:
        graphs = [part.square().sum() for part in (x, x[:4], x[4:])]
    for _ in range(2):
        graphs.pop().backward()
        assert meter.current == x.nbytes
    graphs.pop().backward()
    assert meter.current == 0


def test_peak_is_over_time_not_a_sum():
    net = chain()
    with SavedTensorMeter(net.parameters()) as meter:
        for _ in range(3):
            net(torch.randn(BATCH, WIDTH)).sum().backward()
        assert meter.peak == HELD
        late = [net(torch.randn(BATCH, WIDTH)).sum() for _ in range(3)]
        assert meter.peak == meter.current == 3 * HELD
        sum(late).backward()
    assert meter.current == 0


def test_nothing_is_counted_without_gradients_nor_after_the_context_even_if_it_breaks_off():
    net, meter = chain(), SavedTensorMeter()
    with meter, torch.no_grad():
        net(torch.randn(BATCH, WIDTH))
    assert meter.peak == 0
    with pytest.raises(RuntimeError), meter:
        net(torch.randn(BATCH, WIDTH + 1))
    before = meter.peak
    net(torch.randn(BATCH, WIDTH))
    assert meter.peak == before


def test_first_and_second_derivatives_are_the_same_with_the_meter():
    net, images = CifarResNet((3, 8, 8), 10, depth=8), torch.randn(3, 3, 8, 8)

    def derivatives():
        first = torch.autograd.grad(net(images).square().sum(), net.parameters(), create_graph=True)
        return first + torch.autograd.grad(sum(gradient.square().sum() for gradient in first), net.parameters())

    plain = derivatives()
    with SavedTensorMeter(net.parameters()):
        metered = derivatives()
    assert all(torch.equal(a, b) for a, b in zip(plain, metered, strict=True))


def test_a_change_in_place_is_not_hidden():
    x = torch.ones(3, requires_grad=True)
    with SavedTensorMeter():
        y = x * 2
        loss = (y * y).sum()
        y.add_(1)
        with pytest.raises(RuntimeError, match="changed in place"):
            loss.backward()
