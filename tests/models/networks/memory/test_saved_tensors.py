"""The meter of the bytes that autograd holds."""

import pytest
import torch
from torch import nn

from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.resnet import CifarResNet

DEPTH, BATCH, WIDTH = 4, 5, 7
ROW = BATCH * WIDTH * 4
"""Bytes of one layer's activations."""


def chain(inplace=False):
    torch.manual_seed(0)
    return nn.Sequential(*(m for _ in range(DEPTH) for m in (nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace))))


@pytest.mark.parametrize("inplace", [False, True])
def test_linear_relu_chain_holds_its_input_and_every_relu_output(inplace):
    net = chain(inplace)
    with SavedTensorMeter(net.parameters()) as meter:
        out = net(torch.randn(BATCH, WIDTH))
        assert meter.current == meter.peak == (DEPTH + 1) * ROW
        assert sorted(meter.alive.values()) == [ROW] * (DEPTH + 1)
        out.sum().backward()
    assert meter.peak == (DEPTH + 1) * ROW


def test_on_the_meta_device_it_counts_the_same():
    net = chain().to("meta")
    with SavedTensorMeter(net.parameters()) as meter:
        out = net(torch.empty(BATCH, WIDTH, device="meta"))
        assert meter.current == (DEPTH + 1) * ROW
    assert out.shape == (BATCH, WIDTH)


def test_parameters_do_not_count():
    net, images = chain(), torch.randn(BATCH, WIDTH)
    with SavedTensorMeter() as everything:
        net(images).sum().backward()
    # The first layer's weight is not needed: the images want no gradient.
    assert everything.peak == (DEPTH + 1) * ROW + (DEPTH - 1) * WIDTH * WIDTH * 4


def test_excluded_buffers_do_not_count():
    net, images = nn.BatchNorm1d(WIDTH), torch.randn(BATCH, WIDTH)
    statistics = 2 * WIDTH * 4
    with SavedTensorMeter([*net.parameters(), *net.buffers()]) as meter:
        net(images).sum().backward()
    assert meter.peak == ROW + statistics  # its input, mean and deviation of the batch
    with SavedTensorMeter(net.parameters()) as meter:
        net(images).sum().backward()
    assert meter.peak == ROW + 2 * statistics  # and the running ones


def test_views_of_one_storage_count_once_and_with_the_whole_storage():
    x = torch.randn(8, 6, requires_grad=True)
    with SavedTensorMeter() as meter:
        out = x[:4].square().sum() + x[4:].sin().sum() + (x * x).sum()
        assert meter.current == x.nbytes
    del out
    assert meter.current == 0


def test_a_shared_storage_is_held_until_the_last_graph_goes():
    x = torch.randn(8, 6, requires_grad=True)
    with SavedTensorMeter() as meter:
        graphs = [x.square().sum() for _ in range(3)]
    for _ in range(2):
        graphs.pop().backward()
        assert meter.current == x.nbytes
    graphs.pop().backward()
    assert meter.current == 0


def test_two_storages_count_twice():
    x, y = torch.randn(8, 6, requires_grad=True), torch.randn(3, requires_grad=True)
    with SavedTensorMeter() as meter:
        out = x.square().sum() + y.square().sum()
        assert meter.current == x.nbytes + y.nbytes
        assert out.requires_grad


def test_backward_releases_everything():
    net = CifarResNet((3, 8, 8), 10, depth=20)
    with SavedTensorMeter(net.parameters()) as meter:
        out = net(torch.randn(2, 3, 8, 8))
        assert meter.current > 0
        out.sum().backward()
        assert meter.current == 0
        assert meter.alive == {}
        assert meter.peak > 0
    assert out.shape == (2, 10)


def test_dropping_the_graph_releases_everything():
    net = chain()
    with SavedTensorMeter(net.parameters()) as meter:
        out = net(torch.randn(BATCH, WIDTH))
    assert meter.current > 0
    del out
    assert meter.current == 0
    assert meter.alive == {}


def test_a_retained_graph_stays_counted():
    net = chain()
    with SavedTensorMeter(net.parameters()) as meter:
        loss = net(torch.randn(BATCH, WIDTH)).sum()
        loss.backward(retain_graph=True)
        assert meter.current == (DEPTH + 1) * ROW
        loss.backward()
        assert meter.current == 0


def test_peak_is_over_time_not_a_sum():
    net = chain()
    with SavedTensorMeter(net.parameters()) as meter:
        for _ in range(3):
            net(torch.randn(BATCH, WIDTH)).sum().backward()
        assert meter.peak == (DEPTH + 1) * ROW
        late = [net(torch.randn(BATCH, WIDTH)).sum() for _ in range(3)]
        assert meter.peak == meter.current == 3 * (DEPTH + 1) * ROW
        sum(late).backward()
    assert meter.current == 0


def test_without_gradients_nothing_is_held():
    net = chain()
    with SavedTensorMeter(net.parameters()) as meter, torch.no_grad():
        net(torch.randn(BATCH, WIDTH))
    assert meter.peak == 0


def test_nothing_is_counted_after_the_context():
    net = chain()
    with SavedTensorMeter(net.parameters()) as meter:
        pass
    out = net(torch.randn(BATCH, WIDTH))
    assert meter.peak == 0
    assert out.requires_grad


def test_hooks_go_away_when_a_step_breaks_off():
    net, meter = chain(), SavedTensorMeter()
    with pytest.raises(RuntimeError), meter:
        net(torch.randn(BATCH, WIDTH + 1))
    before = meter.peak
    net(torch.randn(BATCH, WIDTH))
    assert meter.peak == before


def gradients(net, images):
    net.zero_grad()
    net(images).square().sum().backward()
    return [p.grad.clone() for p in net.parameters()]


def test_gradients_are_the_same_with_the_meter():
    net, images = CifarResNet((3, 8, 8), 10, depth=20), torch.randn(3, 3, 8, 8)
    plain = gradients(net, images)
    with SavedTensorMeter(net.parameters()):
        metered = gradients(net, images)
    assert all(torch.equal(a, b) for a, b in zip(plain, metered, strict=True))


def test_second_derivatives_are_the_same_with_the_meter():
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)

    def second():
        (first,) = torch.autograd.grad((x.exp() * x.square()).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    plain = second()
    with SavedTensorMeter():
        metered = second()
    assert torch.equal(plain, metered)


def test_a_change_in_place_is_not_hidden():
    x = torch.ones(3, requires_grad=True)
    with SavedTensorMeter() as meter:
        y = x * 2
        loss = (y * y).sum()
        y.add_(1)
        with pytest.raises(RuntimeError, match="changed in place"):
            loss.backward()
    assert meter.peak > 0
