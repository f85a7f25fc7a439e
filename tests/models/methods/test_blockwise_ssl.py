"""Self-supervised blocks: isolation, equality with plain loops, memory, views, difficulty, sequential training."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from lightly.loss import BarlowTwinsLoss, NTXentLoss, VICRegLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import nn
from torch.optim import SGD
from training import assert_equal_weights, assert_isolated, saved_in_a_step

from datamodules.batch import Batch
from experiments.measure.cost import network_cost
from experiments.measure.workbench import plain_steps
from experiments.measure.yardstick import end_to_end
from losses import SubsampledNTXent
from losses.errors import NetworkError, UsageError
from models.local_learning import LocalLearning, TrainingError
from models.methods.blockwise_ssl import BlockwiseSSL
from models.methods.loco import LoCo
from models.networks.heads.embeddings import BiasFreeProjector
from models.networks.heads.pooling import GlobalPooling, LocalPooling
from models.networks.layers.noise import FeatureNoise
from models.networks.memory.saved_tensors import SavedTensorMeter
from models.networks.vgg import VGG
from models.parts.difficulty import Difficulty

SHAPE = (3, 8, 8)
small_vgg = partial(VGG, plan=(8, 8, "M", 16, 16))
projector = partial(BiasFreeProjector, widths=(12, 12, 10))
make_sgd = partial(SGD, lr=0.05, momentum=0.9)


def views(strength=1.0, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(size, *SHAPE, generator=generator)
    return strength, a, a + 0.3 * torch.randn(size, *SHAPE, generator=generator)


def batch(*pairs):
    pairs = pairs or (views(),)
    return Batch(pairs[-1][1], torch.zeros(len(pairs[-1][1]), dtype=torch.long), pairs)


def ssl(num_blocks=4, method=BlockwiseSSL, **options):
    torch.manual_seed(0)
    options = {"expand_dim": 16, "projector": projector, "optimizer": make_sgd, "network": small_vgg, **options}
    return method(image_shape=SHAPE, num_classes=10, num_blocks=num_blocks, **options).train()


def steps(model, data, count=1):
    step = plain_steps(model, data)
    for _ in range(count):
        next(step)
    return model


def first_features(model):
    """What the first block makes of both views."""
    return model.block_output(0, model.step_input(batch())[1])[1.0]


# -- isolation, equality, memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [BarlowTwinsLoss, NTXentLoss, VICRegLoss, SubsampledNTXent])
@pytest.mark.parametrize(
    "options",
    [
        {"noise": FeatureNoise("all")},
        {"concatenate_views": True},
        {"pooling": GlobalPooling},
        {"pooling": LocalPooling},
        {"projector": partial(SimCLRProjectionHead, hidden_dim=12, output_dim=6)},
    ],
    ids=["noise", "concatenated", "global", "local", "lightly"],
)
def test_loss_of_a_block_reaches_all_of_that_block_and_no_other(loss, options):
    assert_isolated(ssl(loss=loss, **options), batch())


def test_one_block_is_an_ordinary_training_loop():
    model = ssl(1, pooling=GlobalPooling, loss=partial(NTXentLoss, 0.2), loss_scale=0.5)
    other = copy.deepcopy(model)
    steps(model, batch(), 3)
    net, head = other.blocks[0], other.heads[0]
    optimizer = make_sgd([*net.parameters(), *head.parameters()])
    _, a, b = views()
    for _ in range(3):
        optimizer.zero_grad()
        (0.5 * NTXentLoss(0.2)(head(net(a)), head(net(b)))).backward()
        optimizer.step()
    assert_equal_weights(model, other)


@pytest.mark.parametrize(
    ("given", "reckoned"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)], ids=["half", "double"]
)
def test_loss_has_single_precision_at_least(given, reckoned):
    model, (strength, *pair) = ssl(1).to(given), views()
    features = {strength: [model.blocks[0](view.to(given)) for view in pair]}
    assert model.local_loss(0, features, batch()).dtype == reckoned


def test_peak_is_one_blocks_and_nothing_is_left_between_blocks():
    model = ssl(pooling=GlobalPooling)
    peak, left = saved_in_a_step(model, batch(views(size=64)))
    cost = network_cost(model, 64)
    assert left == [0] * 4
    of_the_loss = 6 * 4 * (64 * 10 + 10 * 10)  # some embeddings and correlation matrices
    assert cost.peak_activation_bytes <= peak <= cost.peak_activation_bytes + of_the_loss
    assert cost.predicted_memory_ratio < 0.75


def test_end_to_end_counterpart_has_one_block_and_global_pooling():
    whole = end_to_end(ssl(4, loss=partial(NTXentLoss, 0.3)), checkpoint_segments=2)
    assert whole.num_blocks == 1
    assert isinstance(whole.heads[0].pooling, GlobalPooling)
    assert whole.losses[0].temperature == 0.3
    assert steps(whole, batch()).blocks[0].segments == 2
    cost = network_cost(ssl(1, pooling=GlobalPooling), 8)
    assert cost.backprop_macs == cost.total_macs  # of both views


# -- views, noise, features ---------------------------------------------------------------------------------


def test_separate_and_joint_views_differ_in_batchnorm_only():
    apart, together = ssl(1), ssl(1, concatenate_views=True)
    assert_equal_weights(apart, together)
    assert not torch.allclose(first_features(apart)[0], first_features(together)[0])
    apart.load_state_dict(together.state_dict())
    separate, joint = first_features(apart.eval()), first_features(together.eval())
    torch.testing.assert_close(separate, joint, atol=1e-6, rtol=1e-5)


def test_noise_reaches_head_and_next_block_in_training_only():
    model = ssl(2, noise=FeatureNoise("hw", 0.5))
    noisy, other = first_features(model)
    assert not torch.equal(noisy, model.blocks[0](views()[1]))
    assert not torch.equal(other, model.blocks[0](views()[2]))
    assert torch.equal(model.hand_on(0, {1.0: (noisy, noisy)})[1.0][0], noisy)
    clean, _ = first_features(model.eval())
    assert torch.equal(clean, model.blocks[0](views()[1]))


@pytest.mark.parametrize("together", [False, True])
def test_each_view_has_noise_of_its_own(together):
    model, (_, x, _) = ssl(2, noise=FeatureNoise("all", 0.5), concatenate_views=together), views()
    one, other = model.block_output(0, {1.0: (x, x)})[1.0]
    noise = one - model.blocks[0](x), other - model.blocks[0](x)
    assert abs(torch.corrcoef(torch.stack(noise).flatten(1))[0, 1]) < 0.05


def test_without_a_difficulty_all_blocks_take_the_ordinary_views():
    _, pairs = ssl(2).step_input(batch(views(0.25), views(1.0)))
    assert list(pairs) == [1.0]


def test_features_for_probes():
    model, images = ssl(2).eval(), views()[1]
    features = model.block_features(images)
    widths = {"block1/gap": 8, "block1/cbe": 16, "block2/gap": 16, "block2/cbe": 16}
    assert {name: x.shape[1] for name, x in features.items()} == widths
    torch.testing.assert_close(features["block1/gap"], model.blocks[0](images).mean((2, 3)))
    assert list(model.block_features(images, last=1)) == ["block1/gap", "block1/cbe"]
    assert list(ssl(2, pooling=GlobalPooling).block_features(images)) == ["block1/gap", "block2/gap"]


# -- difficulty --------------------------------------------------------------------------------------------


def test_blocks_learn_from_the_views_of_their_difficulty():
    easy, hard = views(0.25, seed=1), views(1.0, seed=2)
    model = ssl(4, difficulty=Difficulty("rising", views=True))
    by_hand = copy.deepcopy(model)
    steps(model, batch(easy, hard))
    # The hard pair goes along, unlearned, with batch statistics.
    pairs = {0.25: easy[1:], 1.0: hard[1:]}
    optimizers = [make_sgd(by_hand.block_parameters(k)) for k in range(4)]
    for k, own in enumerate([0.25, 0.25, 1.0, 1.0]):
        features = [by_hand.blocks[k](x) for x in pairs[own]]
        other = copy.deepcopy(by_hand.blocks[k])  # whose BatchNorm statistics move instead
        with torch.no_grad():
            pairs = {s: [other(x) for x in pair] for s, pair in pairs.items()}
        pairs[own] = [x.detach() for x in features]
        by_hand.losses[k](*map(by_hand.heads[k], features)).backward()
        optimizers[k].step()
    assert_equal_weights(model, by_hand)


def test_views_that_no_later_block_takes_are_dropped():
    model = ssl(4, difficulty=Difficulty("reversed", views=True))
    _, pairs = model.step_input(batch(views(0.25), views(1.0)))
    seen = []
    for k in range(4):
        pairs = model.hand_on(k, model.block_output(k, pairs))
        seen.append(sorted(pairs))
    assert seen == [[0.25, 1.0], [0.25], [0.25], []]


def test_temperature_and_scale_follow_difficulty():
    model = ssl(3, loss=partial(NTXentLoss, 0.2), difficulty=Difficulty("rising", easy_temperature=0.8))
    assert [loss.temperature for loss in model.losses] == pytest.approx([0.8, 0.4, 0.2])
    a, b = first_features(model)
    plain = NTXentLoss(0.8)(model.heads[0](a), model.heads[0](b))
    assert model.local_loss(0, {1.0: (a, b)}, batch()).item() == pytest.approx(4 * plain.item(), rel=1e-5)
    assert model.loss_weights == pytest.approx([4, 2, 1])


def test_number_of_negatives_follows_difficulty():
    model = ssl(3, loss=partial(SubsampledNTXent, 0.5), difficulty=Difficulty("rising", easy_negatives=6))
    steps(model, batch())
    assert [loss.negatives for loss in model.losses] == [6, 18, 30]  # 2 · 16 − 2 in all


def test_negatives_are_ranked_by_what_the_block_makes_of_view_a():
    model, by_hand = ssl(2, loss=partial(SubsampledNTXent, 0.5, 4, "most_similar")), ssl(2)
    read = []
    for loss in model.losses:
        loss.register_forward_pre_hook(lambda _, arguments: read.append(arguments[2]))
    steps(model, batch())
    x = views()[1]
    for block, context in zip(by_hand.blocks, read, strict=True):
        x = block(x).detach()
        torch.testing.assert_close(context, x.mean((2, 3)))  # neither its input nor the embeddings


# -- what goes wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difficulty": Difficulty(easy_temperature=1.0)}, "has no temperature"),
        ({"difficulty": Difficulty(easy_temperature=0.5), "loss": NTXentLoss}, "above the loss's own 0.5"),
        ({"difficulty": Difficulty("reversed_keep_last", views=True), "num_blocks": 2}, "the same as rising"),
        ({"difficulty": Difficulty(easy_negatives=4), "loss": NTXentLoss}, "needs losses.SubsampledNTXent"),
        ({"difficulty": Difficulty(values=[1.0], views=True)}, "1 difficulties for 4 blocks"),
        ({"num_blocks": 1, "method": LoCo}, "at least 2"),
        ({"epochs_per_block": 2, "method": LoCo}, "learn together"),
        ({"frozen_blocks": 1, "method": LoCo}, "learn together"),
        ({"difficulty": Difficulty(views=True), "method": LoCo}, "learn together"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        ssl(**options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Batch(views()[1], torch.zeros(16)), "give the data views"),
        (batch(views(size=1)), "at least 2"),
        (batch(), r"set data.views.levels, for example to \[0.25, 0.5, 0.75, 1.0\]"),
    ],
    ids=["no views", "one image", "one strength"],
)
def test_a_batch_without_the_views_that_blocks_take_is_refused(data, message):
    model = ssl(4, difficulty=Difficulty("rising", easiest=0.25, views=True))
    with pytest.raises(UsageError, match=message):
        model.training_step(data, 0)


def end_of_step(model, monkeypatch):
    monkeypatch.setattr(LocalLearning, "on_train_batch_end", lambda *_: None)
    model.on_train_batch_end(None, batch(), 0)


def test_collapsed_block_is_named(monkeypatch):
    model = ssl(2)
    end_of_step(steps(model, batch()), monkeypatch)
    nn.init.zeros_(model.heads[1].projector.layers[-1].weight)
    with pytest.raises(TrainingError, match="block2 has collapsed at step 0"):
        end_of_step(steps(model, batch()), monkeypatch)


@pytest.mark.parametrize(
    "wrong",
    [
        partial(nn.Conv2d, out_channels=3, kernel_size=3),
        partial(BiasFreeProjector, widths=(8, 0)),
        lambda width: nn.Flatten(start_dim=0),
    ],
    ids=["of maps", "no dimension", "no batch"],
)
def test_what_is_no_projector_is_refused(wrong):
    with pytest.raises(NetworkError, match="must turn vectors"):
        ssl(2, projector=wrong)


class OwnLoss(BlockwiseSSL):
    def local_loss(self, k, features, batch):
        (pair,) = features.values()
        return sum(self.heads[k](x).square().mean() for x in pair)


class OwnPairLoss(BlockwiseSSL):
    def pair_loss(self, k, z_a, z_b, features):
        return (z_a - z_b).square().mean()


@pytest.mark.parametrize("method", [OwnLoss, OwnPairLoss])
def test_a_method_of_ones_own(method, monkeypatch):
    assert_isolated(model := ssl(2, method), batch())
    end_of_step(model, monkeypatch)


# -- LoCo ------------------------------------------------------------------------------------------------------


def test_overlapping_blocks_learn_from_both_units():
    model = ssl(4, LoCo)
    assert list(model.heads[0].parameters()) == []
    by_hand = copy.deepcopy(model)
    steps(model, batch())

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
    assert 2 * cost.inference_macs == first + middle + last  # of one view, without heads


def test_overlapping_blocks_hold_two_blocks_at_a_time():
    model = ssl(4, LoCo, pooling=GlobalPooling)
    step = plain_steps(model, batch(views(size=64)))
    next(step)
    with SavedTensorMeter([*model.parameters(), *model.buffers()]) as meter:
        next(step)
    cost = network_cost(model, 64)
    assert cost.peak_activation_bytes <= meter.peak <= cost.peak_activation_bytes + 6 * 4 * (64 * 10 + 10 * 10)
    assert cost.peak_activation_bytes > network_cost(ssl(4, pooling=GlobalPooling), 64).peak_activation_bytes
