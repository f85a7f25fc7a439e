"""MAN: what travels down, the average, its ablations, isolation, refusals."""

from functools import partial

import pytest
import torch
from torch.optim import SGD
from training import Batches, assert_equal_weights, batches, train

from experiments.measure.cost import network_cost
from losses.errors import NetworkError, UsageError
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.man import MAN
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead, LinearHead, PooledMLPHead
from models.networks.resnet import CifarResNet
from models.networks.vgg import VGG

SHAPE = (3, 8, 8)
SMALL = partial(VGG, plan=(8, 8, "M", 12, 12))
make_sgd = partial(SGD, lr=0.05, momentum=0.9)


def made(seed=0, **options):
    torch.manual_seed(seed)
    options = {"num_blocks": 3, "head": partial(AuxHead, hidden=8), "optimizer": make_sgd, **options}
    return MAN(network=SMALL, image_shape=SHAPE, num_classes=10, **options)


def averages(model):
    return [dict(head.average.named_buffers()) for head in model.heads[:-1]]


def test_the_average_follows_the_next_unit_as_it_was_before_its_step(tmp_path):
    model = made()
    before = [{n: b.clone() for n, b in average.items()} for average in averages(model)]
    units = [{n: p.detach().clone() for n, p in block[0].named_parameters()} for block in model.blocks[1:]]
    train(model, tmp_path, Batches(batches(1)), max_epochs=1, limit_train_batches=1)
    for average, old, unit in zip(averages(model), before, units, strict=True):
        assert unit
        for name, parameter in unit.items():
            torch.testing.assert_close(average[name], 0.995 * old[name] + 0.005 * parameter)


def test_the_average_moves_once_for_a_step_of_several_batches(tmp_path):
    model = made(accumulate=2)
    before = [{n: b.clone() for n, b in average.items()} for average in averages(model)]
    units = [{n: p.detach().clone() for n, p in block[0].named_parameters()} for block in model.blocks[1:]]
    train(model, tmp_path, Batches(batches(2)), max_epochs=1, limit_train_batches=2)
    for average, old, unit in zip(averages(model), before, units, strict=True):
        for name, parameter in unit.items():
            torch.testing.assert_close(average[name], 0.995 * old[name] + 0.005 * parameter, rtol=0, atol=1e-6)


def test_the_average_of_a_constant_is_a_geometric_series():
    head, unit = (model := made()).heads[0], model.blocks[1][0]
    start = {name: head.average.get_buffer(name).clone() for name, _ in unit.named_parameters()}
    for _ in range(7):
        head.follow(unit)
    for name, parameter in unit.named_parameters():
        expected = parameter + 0.995**7 * (start[name] - parameter)
        torch.testing.assert_close(head.average.get_buffer(name), expected)


def test_the_head_reads_the_sum_of_copy_and_average():
    model = made(learned_scale=True)
    head = model.heads[0].eval()
    x = torch.randn(4, *SHAPE)
    features = model.blocks[0](x)
    ours = head(features)
    torch.testing.assert_close(ours, head.head(head.copies[0](features) + head.average(features)))
    with torch.no_grad():
        head.scale.fill_(1.5)
    expected = head.head(1.5 * head.copies[0](features) + 0.5 * head.average(features))
    torch.testing.assert_close(head(features), expected)


def test_man_is_man_plus_plus_whose_scale_is_1(tmp_path):
    """One step: the scale is the only thing that differs, and it starts at 1."""
    one, other = made(), made(learned_scale=True)
    assert "heads.0.scale" in dict(other.named_parameters())
    for model in (one, other):
        train(model, tmp_path, Batches(batches(1)), max_epochs=1, limit_train_batches=1)
    theirs = other.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())
    assert not torch.equal(theirs["heads.0.scale"], torch.ones(()))


def test_no_gradient_goes_to_the_average_or_the_next_block():
    model = made()
    loss = model.local_loss(0, model.blocks[0](batches(1)[0].images), batches(1)[0])
    loss.backward()
    own = {name for name, p in model.named_parameters() if p.grad is not None}
    assert own == {name for name, _ in model.named_parameters() if name.startswith(("blocks.0.", "heads.0."))}
    assert not any("average" in name for name, _ in model.named_parameters())
    assert all(not b.requires_grad for average in averages(model) for b in average.values())


def test_copy_average_and_unit_are_drawn_apart():
    model = made()
    head, unit = model.heads[0], model.blocks[1][0]
    three = [head.copies[0][0].weight, head.average[0].weight, unit[0].weight]
    assert all(one.shape == three[0].shape for one in three)
    assert not any(torch.equal(three[i], three[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    ("options", "copies", "averaged"),
    [({"average": False}, 1, False), ({"copies": 0}, 0, True), ({"copies": 2, "average": False}, 2, False)],
    ids=["copy", "average", "two copies"],
)
def test_ablations(options, copies, averaged):
    head = made(**options).heads[0]
    assert (len(head.copies), head.average is not None, head.scale) == (copies, averaged, None)
    assert head(torch.randn(2, 8, 8, 8)).shape == (2, 10)


def test_momentum_1_is_a_unit_that_never_moves(tmp_path):
    model = made(momentum=1.0)
    before = [{n: b.clone() for n, b in average.items() if "running" not in n} for average in averages(model)]
    train(model, tmp_path, Batches(batches(2)), max_epochs=1, limit_train_batches=2)
    for average, old in zip(averages(model), before, strict=True):
        assert all(torch.equal(average[name], value) for name, value in old.items() if not name.endswith("tracked"))


def test_without_a_boundary_it_is_dgl(tmp_path):
    models = [made(num_blocks=1)]
    torch.manual_seed(0)
    models.append(DecoupledGreedy(SMALL, SHAPE, 10, num_blocks=1, optimizer=make_sgd))
    for model in models:
        train(model, tmp_path, Batches(batches(2)), max_epochs=1, limit_train_batches=2)
    assert_equal_weights(*models)


def test_the_average_is_kept_in_checkpoints():
    assert any(name.startswith("heads.0.average.") for name in made().state_dict())


def test_a_unit_that_halves_and_widens_has_its_copy():
    """MAN++ on ResNet-32: LB and EMA add twice the trunk's MACs, but for the first and the last unit."""
    model = MAN(network=CifarResNet, image_shape=(3, 32, 32), num_classes=10, num_blocks=16)
    widths = [head.copies[0].conv1.out_channels for head in model.heads[:-1]]
    assert widths == [16] * 5 + [32] * 5 + [64] * 5
    for block, head in zip(model.blocks[1:], model.heads[:-1], strict=False):
        ours = [tuple(p.shape) for p in block[0].parameters()]
        assert [tuple(p.shape) for p in head.copies[0].parameters()] == ours


def test_refusals():
    with pytest.raises(NetworkError, match="copy of the next unit"):
        made(copies=0, average=False)
    with pytest.raises(UsageError, match="leave epochs_per_block out"):
        made(epochs_per_block=1)


def test_cost_counts_the_average_forward_and_through():
    """Its weights get no gradient: two thirds of what the copy costs in a step."""
    options = {"network": CifarResNet, "image_shape": (3, 32, 32), "num_classes": 10, "num_blocks": 4}
    head = partial(LinearHead, grid=(1, 1))
    costs = [
        network_cost(MAN(head=head, copies=copies, average=average, **options), 2, "plain")
        for copies, average in ((1, False), (1, True), (2, False))
    ]
    assert costs[1].total_macs == costs[2].total_macs
    one, both, two = (cost.predicted_step_ratio for cost in costs)
    assert (both - one) / (two - one) == pytest.approx(2 / 3)


def test_published_parameters_of_the_head():
    """MAN++'s own head: 9.6 million in 15 heads of ResNet-32."""
    options = {"network": CifarResNet, "image_shape": (3, 32, 32), "num_classes": 10, "num_blocks": 16}
    model = DecoupledGreedy(head=PooledMLPHead, cut=Cut(by="published"), **options)
    assert sum(p.numel() for head in model.heads[:-1] for p in head.parameters()) / 1e6 == pytest.approx(9.6, abs=0.04)
    cost = network_cost(model, 2, "plain")
    assert (cost.total_macs - cost.backprop_macs) / cost.backprop_macs == pytest.approx(0.64, abs=0.005)
