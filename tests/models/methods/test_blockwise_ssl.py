"""Self-supervised blocks: isolation, equality with plain loops, memory, views, difficulty, sequential training."""

import copy
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from lightly.loss import BarlowTwinsLoss, NTXentLoss, VICRegLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import nn
from torch.optim import SGD

from experiments.measure.cost import network_cost
from experiments.measure.workbench import plain_steps
from experiments.measure.yardstick import end_to_end
from losses import SubsampledNTXent
from losses.errors import NetworkError, UsageError
from models.local_learning import TrainingError
from models.methods.blockwise_ssl import BlockwiseSSL
from models.methods.loco import LoCo
from models.networks.heads.embeddings import BiasFreeProjector
from models.networks.heads.expansion import ConvExpansion
from models.networks.heads.pooling import GlobalPooling, LocalPooling
from models.networks.layers.noise import FeatureNoise
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.vgg import VGG
from models.parts.difficulty import Difficulty

SHAPE = (3, 8, 8)
small_vgg = partial(VGG, plan=(8, 8, "M", 16, 16))
projector = partial(BiasFreeProjector, widths=(12, 12, 10))
make_sgd = partial(SGD, lr=0.05, momentum=0.9)
LOSSES = [BarlowTwinsLoss, NTXentLoss, VICRegLoss, SubsampledNTXent]


class Batch(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor
    views: tuple = ()


def views(strength=1.0, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(size, *SHAPE, generator=generator)
    return strength, a, a + 0.3 * torch.randn(size, *SHAPE, generator=generator)


def batch(*pairs):
    pairs = pairs or (views(),)
    return Batch(pairs[-1][1], torch.zeros(len(pairs[-1][1]), dtype=torch.long), pairs)


def ssl(num_blocks=4, method=BlockwiseSSL, seed=0, **options):
    torch.manual_seed(seed)
    options = {"expand_dim": 16, "projector": projector, "optimizer": make_sgd, "network": small_vgg, **options}
    return method(image_shape=SHAPE, num_classes=10, num_blocks=num_blocks, **options).train()


def steps(model, data, count=3):
    step = plain_steps(model, data)
    for _ in range(count):
        next(step)
    return model


def assert_equal_weights(one, other):
    for (name, ours), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


# -- isolation, memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("options", [{}, {"noise": FeatureNoise("all")}, {"concatenate_views": True}])
def test_loss_of_a_block_reaches_that_block_and_no_other(loss, options, monkeypatch):
    model = ssl(loss=loss, **options)
    reached = []

    def backward_only(k, loss):
        loss.backward()
        reached.append({name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0})
        model.zero_grad()

    monkeypatch.setattr(model, "update_block", backward_only)
    model.training_step(batch(), 0)
    assert len(reached) == 4
    for k, names in enumerate(reached):
        own = {n for n, _ in model.named_parameters() if n.startswith((f"blocks.{k}.", f"heads.{k}."))}
        assert names <= own
        assert any(name.startswith(f"blocks.{k}.") for name in names)


def test_peak_is_one_blocks_and_nothing_is_left_between_blocks(monkeypatch):
    model = ssl(pooling=GlobalPooling)
    left = []

    def backward_only(k, loss):
        loss.backward()
        del loss
        left.append(meter.current)

    monkeypatch.setattr(model, "update_block", backward_only)
    with SavedTensorMeter([*model.parameters(), *model.buffers()]) as meter:
        model.training_step(batch(views(size=64)), 0)
    cost = network_cost(model, 64)
    assert meter.current == 0
    of_the_loss = 6 * 4 * (64 * 10 + 10 * 10)  # some embeddings and correlation matrices
    assert cost.peak_activation_bytes <= meter.peak <= cost.peak_activation_bytes + of_the_loss
    assert cost.predicted_memory_ratio < 0.75


def test_pieces_keep_the_expanded_map_out_of_memory():
    ratios = {}
    for piece in (None, 0.01):
        model = ssl(expand_dim=128, pooling=partial(ConvExpansion, piece_mib=piece))
        ratios[piece] = network_cost(model, 64).predicted_memory_ratio
    globally = network_cost(ssl(pooling=GlobalPooling), 64).predicted_memory_ratio
    assert ratios[None] > 2 > 1 > ratios[0.01]
    assert ratios[0.01] < 1.2 * globally  # what is left: the projector reads 128 values instead of 8 or 16


def test_one_block_is_an_ordinary_training_loop():
    model = ssl(1, pooling=GlobalPooling, loss=partial(NTXentLoss, 0.2), loss_scale=0.5)
    other = copy.deepcopy(model)
    steps(model, batch())
    net, head = other.blocks[0], other.heads[0]
    optimizer = make_sgd([*net.parameters(), *head.parameters()])
    _, a, b = views()
    for _ in range(3):
        optimizer.zero_grad()
        (0.5 * NTXentLoss(0.2)(head(net(a)), head(net(b)))).backward()
        optimizer.step()
    assert_equal_weights(model, other)


def test_updating_at_once_equals_summing_all_losses_first():
    model = ssl(3)
    late = copy.deepcopy(model)
    steps(model, batch(), 1)
    optimizer = make_sgd([p for k in range(3) for p in late.block_parameters(k)])
    pair, total = views()[1:], 0
    for k in range(3):
        pair = [late.blocks[k](x) for x in pair]
        total = total + late.losses[k](*(late.heads[k](x) for x in pair))
        pair = [x.detach() for x in pair]
    total.backward()
    optimizer.step()
    assert_equal_weights(model, late)


def test_scaled_loss_is_the_published_formula():
    model = ssl(2, loss=partial(BarlowTwinsLoss, 0.0051), loss_scale=0.024)
    _, pairs = model.step_input(batch())
    features = model.block_output(0, pairs)
    z_a, z_b = (model.heads[0](x).detach() for x in features[1.0])
    z_a, z_b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z_a, z_b))
    c = z_a.T @ z_b / len(z_a)
    diagonal = (c.diagonal() - 1).square().sum()
    off_diagonal = c.square().sum() - c.diagonal().square().sum()
    expected = 0.024 * (diagonal + 0.0051 * off_diagonal)
    assert model.local_loss(0, features, batch()).item() == pytest.approx(expected.item(), rel=1e-5)


# -- heads, views, noise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", [GlobalPooling, LocalPooling, ConvExpansion])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_pooling_head_and_loss_trains(pooling, loss):
    model = ssl(2, pooling=pooling, loss=loss)
    before = copy.deepcopy(model)
    steps(model, batch())
    for (name, p), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(p, old), name
        assert p.isfinite().all()


def test_heads_begin_differently_and_losses_are_one_per_block():
    model = ssl(2, pooling=LocalPooling, network=partial(VGG, plan=(16, 16)))
    first, second = (head.projector.layers[0].weight for head in model.heads)
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    assert model.losses[0] is not model.losses[1]


def test_lightlys_heads_can_be_named():
    head = ssl(2, projector=partial(SimCLRProjectionHead, hidden_dim=12, output_dim=6)).heads[0].projector
    assert isinstance(head, SimCLRProjectionHead)


def test_separate_and_joint_views_differ_in_batchnorm_only():
    apart, together = ssl(1), ssl(1, concatenate_views=True)
    assert_equal_weights(apart, together)
    pairs = [model.block_output(0, model.step_input(batch())[1])[1.0] for model in (apart, together)]
    assert not torch.allclose(pairs[0][0], pairs[1][0])
    apart.eval(), together.eval()
    apart.load_state_dict(together.state_dict())
    pairs = [model.block_output(0, model.step_input(batch())[1])[1.0] for model in (apart, together)]
    assert torch.allclose(pairs[0][0], pairs[1][0], atol=1e-6)


def test_noise_reaches_head_and_next_block_in_training_only():
    model = ssl(2, noise=FeatureNoise("hw", 0.5))
    torch.manual_seed(0)
    noisy = model.block_output(0, model.step_input(batch())[1])
    assert not torch.equal(noisy[1.0][0], model.blocks[0](views()[1]))
    assert torch.equal(model.hand_on(0, noisy)[1.0][0], noisy[1.0][0])
    model.eval()
    clean = model.block_output(0, model.step_input(batch())[1])
    assert torch.equal(clean[1.0][0], model.blocks[0](views()[1]))


def test_features_for_probes():
    model = ssl(2).eval()
    images = views()[1]
    features = model.block_features(images)
    assert {name: x.shape[1] for name, x in features.items()} == {
        "block1/gap": 8,
        "block1/cbe": 16,
        "block2/gap": 16,
        "block2/cbe": 16,
    }
    assert torch.allclose(features["block1/gap"], model.blocks[0](images).mean((2, 3)), atol=1e-6)
    assert list(model.block_features(images, last=1)) == ["block1/gap", "block1/cbe"]
    assert list(ssl(2, pooling=GlobalPooling).block_features(images)) == ["block1/gap", "block2/gap"]


# -- difficulty --------------------------------------------------------------------------------------------


def test_blocks_learn_from_the_views_of_their_difficulty():
    easy, hard = views(0.25, seed=1), views(1.0, seed=2)
    model = ssl(4, difficulty=Difficulty("rising", views=True))
    model.step_input(batch(easy, hard))
    assert model._strengths == [0.25, 0.25, 1.0, 1.0]
    reached = copy.deepcopy(model)
    steps(model, batch(easy, hard), 1)
    # The same by hand: the hard pair goes along, unlearned, with batch statistics.
    pairs = {0.25: easy[1:], 1.0: hard[1:]}
    optimizers = [make_sgd(reached.block_parameters(k)) for k in range(4)]
    for k, own in enumerate([0.25, 0.25, 1.0, 1.0]):
        features = [reached.blocks[k](x) for x in pairs[own]]
        other = copy.deepcopy(reached.blocks[k])  # whose BatchNorm statistics move instead
        with torch.no_grad():
            pairs = {s: [other(x) for x in pair] for s, pair in pairs.items()}
        pairs[own] = [x.detach() for x in features]
        reached.losses[k](*map(reached.heads[k], features)).backward()
        optimizers[k].step()
    assert_equal_weights(model, reached)


def test_views_that_no_later_block_takes_are_dropped():
    model = ssl(4, difficulty=Difficulty("reversed", views=True))
    _, pairs = model.step_input(batch(views(0.25), views(1.0)))
    seen = []
    for k in range(4):
        features = model.block_output(k, pairs)
        pairs = model.hand_on(k, features)
        seen.append(sorted(pairs))
    assert seen == [[0.25, 1.0], [0.25], [0.25], []]


def test_temperature_and_scale_follow_difficulty():
    model = ssl(3, loss=partial(NTXentLoss, 0.2), difficulty=Difficulty("rising", easy_temperature=0.8))
    assert [loss.temperature for loss in model.losses] == pytest.approx([0.8, 0.4, 0.2])
    assert model.loss_weights == pytest.approx([4, 2, 1])
    _, pairs = model.step_input(batch())
    features = model.block_output(0, pairs)
    plain = NTXentLoss(0.8)(*(model.heads[0](x) for x in features[1.0]))
    assert model.local_loss(0, features, batch()).item() == pytest.approx(4 * plain.item(), rel=1e-5)


def test_number_of_negatives_follows_difficulty():
    model = ssl(3, loss=partial(SubsampledNTXent, 0.5), difficulty=Difficulty("rising", easy_negatives=6))
    steps(model, batch(), 1)
    assert [loss.negatives for loss in model.losses] == [6, 18, 30]  # 2 · 16 − 2 in all


@pytest.mark.parametrize(
    ("difficulty", "loss", "message"),
    [
        (Difficulty(easy_temperature=1.0), BarlowTwinsLoss, "has no temperature"),
        (Difficulty(easy_negatives=4), NTXentLoss, "needs losses.SubsampledNTXent"),
        (Difficulty(values=[1.0]), NTXentLoss, "1 difficulties for 4 blocks"),
    ],
)
def test_difficulty_that_does_not_fit_is_refused(difficulty, loss, message):
    with pytest.raises(UsageError, match=message):
        ssl(4, loss=loss, difficulty=difficulty)


def test_views_of_one_strength_are_too_few_for_a_difficulty_of_views():
    model = ssl(4, difficulty=Difficulty("rising", easiest=0.25, views=True))
    with pytest.raises(UsageError, match=r"set data.views.levels, for example to \[0.25, 0.5, 0.75, 1.0\]"):
        model.training_step(batch(), 0)


# -- what goes wrong -------------------------------------------------------------------------------------------


def test_no_views_and_single_images_are_told():
    model = ssl(2)
    with pytest.raises(UsageError, match="give the data views"):
        model.training_step(Batch(views()[1], torch.zeros(16)), 0)
    with pytest.raises(UsageError, match="at least 2"):
        model.training_step(batch(views(size=1)), 0)


class Forgetful(nn.Module):
    """A projector that gives every image the same embedding."""

    def __init__(self, input_dim):
        super().__init__()
        self.layer = nn.Linear(input_dim, 3)

    def forward(self, x):
        return self.layer(0 * x)


class Forgetful3(Forgetful):
    """A projector that gives no embeddings at all."""

    def forward(self, x):
        return super().forward(x).sum()


@pytest.mark.parametrize("loss", [NTXentLoss, VICRegLoss, BarlowTwinsLoss])
def test_collapsed_block_is_named(loss, monkeypatch):
    model = ssl(2, loss=loss)
    model.heads[1].projector = Forgetful(16)
    steps(model, batch(), 1)
    monkeypatch.setattr(BlockwiseSSL.__mro__[1], "on_train_batch_end", lambda *_: None)
    with pytest.raises(TrainingError, match="block2 has collapsed at step 0"):
        model.on_train_batch_end(None, batch(), 0)


def test_healthy_blocks_do_not_collapse(monkeypatch):
    model = steps(ssl(2), batch(), 1)
    monkeypatch.setattr(BlockwiseSSL.__mro__[1], "on_train_batch_end", lambda *_: None)
    model.on_train_batch_end(None, batch(), 0)


class OwnLoss(BlockwiseSSL):
    def local_loss(self, k, features, batch):
        (pair,) = features.values()
        return sum(self.heads[k](x).square().mean() for x in pair)


class OwnPairLoss(BlockwiseSSL):
    def pair_loss(self, k, z_a, z_b, features):
        return (z_a - z_b).square().mean()


@pytest.mark.parametrize("method", [OwnLoss, OwnPairLoss])
def test_a_method_of_ones_own(method, monkeypatch):
    model = ssl(2, method)
    before = copy.deepcopy(model)
    steps(model, batch(), 1)
    monkeypatch.setattr(BlockwiseSSL.__mro__[1], "on_train_batch_end", lambda *_: None)
    model.on_train_batch_end(None, batch(), 0)
    assert not torch.equal(model.blocks[1][0][0].weight, before.blocks[1][0][0].weight)


@pytest.mark.parametrize(
    "wrong", [partial(nn.Conv2d, out_channels=3, kernel_size=3), partial(BiasFreeProjector, widths=(8, 0)), Forgetful3]
)
def test_what_is_no_projector_is_refused(wrong):
    with pytest.raises(NetworkError, match="must turn vectors"):
        ssl(2, projector=wrong)


def test_end_to_end_counterpart_has_one_block_and_global_pooling():
    whole = end_to_end(ssl(4, loss=partial(NTXentLoss, 0.3)))
    assert whole.num_blocks == 1
    assert isinstance(whole.heads[0].pooling, GlobalPooling)
    assert whole.losses[0].temperature == 0.3
    lean = end_to_end(ssl(4), checkpoint_segments=2)
    torch.manual_seed(0)
    assert steps(lean, batch(), 1).blocks[0].segments == 2


# -- LoCo ------------------------------------------------------------------------------------------------------


def test_overlapping_blocks_learn_from_both_units():
    model = ssl(4, LoCo)
    assert list(model.heads[0].parameters()) == []
    by_hand = copy.deepcopy(model)
    steps(model, batch(), 1)

    # Every unit by itself: its two blocks run on a detached input, whatever another unit has run before.
    pair, optimizers = views()[1:], [make_sgd(by_hand.block_parameters(k)) for k in range(4)]
    inputs = [pair]
    for block in by_hand.blocks:
        with torch.no_grad():
            inputs.append([block(x) for x in inputs[-1]])
    for k, (lower, upper) in enumerate(pairwise(by_hand.blocks)):
        by_hand.losses[k + 1](*(by_hand.heads[k + 1](upper(lower(x))) for x in inputs[k])).backward()
    for optimizer in optimizers:
        optimizer.step()
    for (name, ours), theirs in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6), name


def test_shared_blocks_cost_two_backward_passes():
    model = ssl(3, LoCo, pooling=GlobalPooling)
    cost = network_cost(model, 8, "plain")
    heads = [2 * sum(p.numel() for p in head.parameters() if p.ndim > 1) for head in model.heads]  # two views
    first, middle, last = (node.forward_macs - head for node, head in zip(cost.nodes, heads, strict=True))
    expected = first + middle * 5 / 3 + last + sum(heads)  # a backward pass is two forward passes' work
    assert cost.predicted_step_ratio == pytest.approx(expected / cost.backprop_macs)


def test_overlapping_blocks_hold_two_blocks_at_a_time():
    model = ssl(4, LoCo, pooling=GlobalPooling)
    step = plain_steps(model, batch(views(size=64)))
    next(step)
    with SavedTensorMeter([*model.parameters(), *model.buffers()]) as meter:
        next(step)
    cost = network_cost(model, 64)
    assert cost.peak_activation_bytes <= meter.peak <= cost.peak_activation_bytes + 6 * 4 * (64 * 10 + 10 * 10)
    assert cost.peak_activation_bytes > network_cost(ssl(4, pooling=GlobalPooling), 64).peak_activation_bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_blocks": 1}, "at least 2"),
        ({"epochs_per_block": 2}, "learn together"),
        ({"difficulty": Difficulty(views=True)}, "learn together"),
    ],
)
def test_what_overlapping_blocks_refuse(options, message):
    with pytest.raises(UsageError, match=message):
        ssl(**{"num_blocks": 3, "method": LoCo, **options})
