"""Forward-Forward with labels: the plain loop, isolation, normalisation, negatives, both predictions, resume."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy.stats import chisquare
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from training import Batches, assert_equal_weights, assert_isolated, evaluated, train

from datamodules.augment import Augment
from datamodules.batch import Batch
from datamodules.digits import Digits
from experiments.measure.cost import network_cost
from experiments.studies.plain_forward_forward import PlainForwardForward
from losses.errors import NetworkError, UsageError
from losses.goodness import Goodness, unit_length
from models.methods import forward_forward
from models.methods.forward_forward import ForwardForward
from models.networks.layers.labels import AppendedLabel
from models.networks.mlp import MLP
from models.networks.vgg import VGG
from models.parts.constant_linear import ConstantThenLinear

SHAPE, CLASSES, WIDTHS = (1, 4, 6), 5, [15, 12, 11]
sgd = partial(SGD, lr=0.05, momentum=0.9, dampening=0.9, weight_decay=1e-3)


def made(network=None, shape=SHAPE, classes=CLASSES, **options):
    torch.manual_seed(0)
    network = network or partial(MLP, hidden=WIDTHS, batch_norm=False)
    return ForwardForward(network, shape, classes, **{"optimizer": sgd, **options})


def batches(count, size=8):
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.rand(size, *SHAPE, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
            indices=torch.arange(size),
        )
        for _ in range(count)
    ]


@pytest.fixture
def wrong(monkeypatch):
    """The wrong labels that are drawn."""
    seen, draw = [], forward_forward.wrong_labels

    def recorded(labels, logits):
        seen.append(draw(labels, logits))
        return seen[-1]

    monkeypatch.setattr(forward_forward, "wrong_labels", recorded)
    return seen


@pytest.mark.parametrize("peer", [0.0, 0.03, 0.5])
def test_learns_as_the_plain_loop_does(peer, wrong, tmp_path):
    """Two epochs of five batches: weights, running means and the read-out are those of a loop over layers."""
    fast = partial(Adam, lr=0.03)
    model, other = (made(peer=peer, readout_optimizer=fast) for _ in range(2))
    layers = [m for m in other.blocks.modules() if isinstance(m, nn.Linear)]
    loop = PlainForwardForward(layers, other.heads[3], sgd, fast, peer)
    some = batches(5)
    train(model, tmp_path, Batches(some), limit_train_batches=1.0)
    assert len(wrong) == 10
    for batch, labels in zip(some * 2, wrong, strict=True):
        loop.step(batch.images, batch.labels, lambda true, logits, labels=labels: labels)
    before = made(peer=peer)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda said, name=name: f"{name}: {said}")
        assert not torch.equal(ours, before.get_parameter(name))
    for head, mean in zip(model.heads, loop.means if peer else (), strict=False):
        torch.testing.assert_close(head.mean, mean)


@pytest.mark.parametrize("negatives", ["hard", "uniform"])
def test_blocks_are_isolated(negatives):
    assert_isolated(made(negatives=negatives), batches(1)[0])


def test_uniform_and_hard_negatives_read_the_same(monkeypatch):
    """The neutral images go through the blocks in the step itself, or before it: the read-out sees the same."""
    seen = []
    for negatives in ("uniform", "hard"):
        model = made(negatives=negatives, read_from=2)
        monkeypatch.setattr(model, "update_block", lambda k, loss: seen.append(loss.detach()))
        monkeypatch.setattr(forward_forward, "wrong_labels", lambda labels, _: (labels + 1) % CLASSES)
        model.heads[3].weight.data.normal_(generator=torch.Generator().manual_seed(0))
        model.training_step(batches(1)[0], 0)
    torch.testing.assert_close(seen[:4], seen[4:])


def expected_activities(model, rows):
    """By hand: rms of the input, linear, ReLU, rms …"""
    found = []
    for layer in (m for m in model.blocks.modules() if isinstance(m, nn.Linear)):
        rows = F.linear(rows / rows.square().mean(1, keepdim=True).sqrt(), layer.weight, layer.bias).clamp(min=0)
        found.append(rows)
    return found


def with_pixels(images, pixels):
    rows = images.flatten(1).clone()
    rows[:, :CLASSES] = pixels
    return rows


@pytest.mark.parametrize("read_from", [1, 2, 3])
def test_both_predictions_by_hand(read_from):
    model, batch = made(read_from=read_from), batches(1)[0]
    model.heads[3].weight.data.normal_()
    images = batch.images
    neutral = expected_activities(model, with_pixels(images, 1 / CLASSES))[read_from - 1 :]
    read = torch.cat([a / a.square().mean(1, keepdim=True).sqrt() for a in neutral], 1)
    tried = [expected_activities(model, with_pixels(images, code))[read_from - 1 :] for code in torch.eye(CLASSES)]
    energies = torch.stack([sum(a.square().sum(1) for a in one) for one in tried], 1) / sum(WIDTHS[read_from - 1 :])
    with torch.no_grad():
        found = model.block_logits(images)
        assert list(found) == ["energy", "final"]  # the last is the model's
        torch.testing.assert_close(found["final"], read @ model.heads[3].weight.T)
        torch.testing.assert_close(found["energy"], energies)
        torch.testing.assert_close(model(images), found["final"])
        metrics = evaluated(model, batch)
    for name, logits in found.items():
        assert metrics[f"{name}/top1"] == (logits.argmax(1) == batch.labels).float().mean()
    assert metrics["top1"] == metrics["final/top1"]
    torch.testing.assert_close(metrics["final/loss"], F.cross_entropy(found["final"], batch.labels))


def test_features_are_directions_and_side_by_side():
    model, images = made(), batches(1)[0].images
    found = model.block_features(images)
    one, two, three = (unit_length(a) for a in expected_activities(model, with_pixels(images, 1 / CLASSES)))
    expected = {"block1/gap": one, "block2/gap": two, "block3/gap": three}
    expected |= {"block3/all": torch.cat([one, two, three], 1), "block3/all_but_first": torch.cat([two, three], 1)}
    torch.testing.assert_close(found, expected)
    assert list(model.block_features(images, last=2)) == ["block1/gap", "block2/gap", "block2/all"]


@pytest.mark.parametrize("normalise", [True, False])
def test_what_a_block_hands_on_tells_nothing_of_its_goodness(normalise):
    """Weights and biases five times as large: the next block sees the same, unless activities go on as they are."""
    model, scaled = made(normalise=normalise), made(normalise=normalise)
    for parameter in scaled.blocks[0].parameters():
        parameter.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    model.blocks[0].load_state_dict(scaled.blocks[0].state_dict())
    for parameter in scaled.blocks[0].parameters():
        parameter.data *= 5
    images = batches(1)[0].images
    (one, next_one), (other, next_other) = ([*m.walk(images)][:2] for m in (model, scaled))
    torch.testing.assert_close(5 * one, other)
    assert torch.allclose(next_one, next_other, rtol=1e-4, atol=1e-5) == normalise
    contrast = model.block_output(0, model.step_input(batches(1)[0])[1])
    handed = model.hand_on(0, contrast)
    assert not any(rows.requires_grad for rows in handed[:2])
    lengths = handed.positive.square().mean(1), handed.negative.square().mean(1)
    assert all(torch.allclose(length, torch.ones(8)) == normalise for length in lengths)


@pytest.mark.parametrize("peer", [0.0, 0.03])
def test_peers_revive_a_dead_unit(peer, tmp_path):
    model = made(peer=peer, optimizer=partial(SGD, lr=0.1))
    layer = model.blocks[1].fc2[0]
    layer.weight.data[3], layer.bias.data[3] = -1.0, -1.0  # what it reads is not negative
    before = layer.weight.detach().clone()
    train(model, tmp_path, Batches(batches(1)), max_epochs=1)
    moved = (layer.weight != before).any(1)
    assert moved.tolist() == [unit != 3 or peer > 0 for unit in range(12)]
    assert (layer.weight[3] >= before[3]).all()


def test_without_peers_a_relu_stays_as_it_is():
    assert isinstance(made(peer=0.0).blocks[2].fc3[-1], nn.ReLU)


def test_hard_negatives_are_what_the_readout_finds_likely(wrong):
    model, (batch,) = made(), batches(1, size=4000)
    batch = batch._replace(images=batch.images[:1].expand_as(batch.images), labels=torch.zeros_like(batch.labels))
    model.heads[3].weight.data.normal_(std=0.3)
    _, contrast = model.step_input(batch)
    assert contrast.neutral is None
    p = model(batch.images[:1])[0].softmax(0)[1:]
    seen = wrong[0].bincount(minlength=CLASSES)
    assert seen[0] == 0
    assert p.max() > 2 * p.min()
    assert chisquare(seen[1:].numpy(), (p.double() / p.double().sum() * 4000).detach().numpy()).pvalue > 0.01
    codes = contrast.negative.flatten(1)[:, :CLASSES].argmax(1)
    assert torch.equal(codes, wrong[0])
    assert not contrast.positive.flatten(1)[:, 1:CLASSES].any()


def test_uniform_negatives_are_all_as_likely(wrong):
    model, (batch,) = made(negatives="uniform"), batches(1, size=4000)
    model.heads[3].weight.data.normal_()
    model.step_input(batch)
    distance = (wrong[0] - batch.labels) % CLASSES
    assert (distance > 0).all()
    assert chisquare(distance.bincount(minlength=CLASSES)[1:].numpy()).pvalue > 0.01


def test_what_listens_to_a_block_hears_images_without_labels_first():
    for negatives in ("hard", "uniform"):
        model, batch, heard = made(negatives=negatives), batches(1)[0], []
        model.blocks[1].register_forward_hook(lambda block, x, y, heard=heard: heard.append(y.detach()))
        model.update_block = lambda k, loss: None
        model.training_step(batch, 0)
        expected = [*model.walk(batch.images)][1].detach()
        torch.testing.assert_close(heard[0], expected)
        heard.clear()
        evaluated(model, batch)
        torch.testing.assert_close(heard[0], expected)


def test_separation_and_goodness_are_logged(tmp_path):
    model, batch = made(optimizer=partial(SGD, lr=1e-9)), batches(1)[0]
    train(model, tmp_path, Batches([batch]), max_epochs=1, log_every_n_steps=1)
    assert {name for name in model.latest if name.startswith("train/block2/")} == {
        f"train/block2/{figure}"
        for figure in ("loss", "lr", "grad_norm", "separation", "positive_goodness", "negative_goodness")
    }
    rows = expected_activities(made(), with_pixels(batch.images, F.one_hot(batch.labels, CLASSES).float()))[1]
    positive = rows.square().sum(1)
    assert model.latest["train/block2/positive_goodness"] == pytest.approx(positive.mean().item(), rel=1e-4)
    above = (positive > 12).float().mean()
    below = 2 * model.latest["train/block2/separation"] - above
    assert 0 <= below <= 1
    assert (8 * below).item() == pytest.approx(round((8 * below).item()), abs=1e-4)
    assert model.latest["train/final/top1"] == (batch.labels == 0).float().mean()  # it begins at 0


def test_options_of_goodness_reach_the_loss():
    model, batch = made(peer=0.0, goodness=Goodness("mean", threshold=0.7, temperature=0.1)), batches(1)[0]
    contrast = model.block_output(0, model.step_input(batch)[1])
    logits = [10 * (rows.square().mean(1) - 0.7) for rows in contrast[:2]]
    expected = (F.softplus(-logits[0]).mean() + F.softplus(logits[1]).mean()) / 2
    torch.testing.assert_close(model.local_loss(0, contrast, batch), expected)


def test_a_run_resumed_within_an_epoch_learns_the_same(tmp_path):
    def run(resume=None):
        network = partial(MLP, hidden=[20, 20], batch_norm=False)
        options = {"num_blocks": 2, "label": AppendedLabel, "scheduler": partial(ConstantThenLinear, epochs=2)}
        model = made(network, (1, 8, 8), 10, readout_optimizer=partial(Adam, lr=0.01), **options)
        saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=6)
        options = {"callbacks": [saved], "enable_checkpointing": True, "limit_train_batches": 1.0}
        train(model, tmp_path, Digits(batch_size=300, augment=Augment(pad=1)), resume=resume, **options)
        return model

    whole = run()
    assert (whole.heads[0].mean != 0.5).all()
    assert_equal_weights(whole, run(tmp_path / "step=6.ckpt"))


def test_a_control_begins_with_the_weights_of_the_run():
    assert_equal_weights(made(), made())
    for fan, widths in (("fan_in", (24, 15, 12)), ("fan_out", (15, 12, 11))):
        wide = partial(MLP, hidden=[100 * w for w in WIDTHS], batch_norm=False)
        layers = [block[0][-2] for block in made(wide, init=fan).blocks]
        for layer, width in zip(layers, widths, strict=True):
            width = 24 if width == 24 else 100 * width
            assert layer.weight.std().item() * width**0.5 == pytest.approx(1, abs=0.02)
            assert not layer.bias.any()
    assert made(init="torch").blocks[0].fc1[1].bias.any()


def test_blocks_one_after_the_other(tmp_path):
    """What has learned counts: no prediction, then the energy of blocks from the second on, then the read-out."""
    model, evaluations = made(epochs_per_block=1), []
    model.on_validation_epoch_end = lambda: evaluations.append(sorted(model._evaluation.compute()))
    data = Batches(batches(2))
    data.val_dataloader = data.train_dataloader
    train(model, tmp_path, data, max_epochs=4)
    predictions = [{name.partition("/")[0] for name in names if "/top1" in name} for names in evaluations]
    assert predictions == [set(), {"energy"}, {"energy"}, {"energy", "final"}]
    images, model.learned = batches(1)[0].images, 2  # the third block does not count yet
    second = [expected_activities(model, with_pixels(images, code))[1] for code in torch.eye(CLASSES)]
    torch.testing.assert_close(model.energies(images), torch.stack([a.square().mean(1) for a in second], 1))
    model.learned = 3
    with pytest.raises(UsageError, match="read-out has not learned"):
        model(images)
    assert model.heads[3].weight.any()


@pytest.mark.parametrize(
    ("options", "pixels", "read"),
    [({}, 24, 23), ({"shape": (3, 4, 4), "label": AppendedLabel, "read_from": 1}, 48 + CLASSES, 38)],
)
def test_cost_counts_two_rows_of_an_image_and_a_neutral_one(options, pixels, read):
    model = made(peer=0.0, **options)
    cost, plan = network_cost(model, 8, "plain"), model.plan()
    macs = [2 * pixels * 15, 2 * 15 * 12, 2 * 12 * 11]
    assert [node.forward_macs for node in cost.nodes] == macs
    assert cost.final_head == (read * CLASSES, read * CLASSES)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert plan.views * plan.forward_passes[0] == 3


def test_what_fits_no_block_is_refused():
    with pytest.raises(UsageError, match="read from number 2 on, but there are 1"):
        made(num_blocks=1)
    with pytest.raises(NetworkError, match="BatchNorm would mix"):
        made(partial(MLP, hidden=WIDTHS))
    with pytest.raises(NetworkError, match="block 1 ends with Dropout"):
        made(partial(MLP, hidden=WIDTHS, batch_norm=False, dropout=0.1))
    with pytest.raises(NetworkError, match="AppendedLabel"):
        made(partial(VGG, plan=(8, 8)), (3, 8, 8))


def test_a_readout_optimizer_that_cannot_step_is_refused(tmp_path):
    with pytest.raises(UsageError, match="This optimizer, or its scheduler, cannot train blocks"):
        train(made(readout_optimizer=partial(Adam, lr=-1.0)), tmp_path, Batches(batches(1)))


def test_half_precision_trains(tmp_path):
    model = made()
    train(model, tmp_path, Batches(batches(3)), precision="bf16-mixed")
    assert model.heads[0].mean.dtype == torch.float32
    assert (model.heads[0].mean != 0.5).any()
    assert model.monitor == "val/final/top1"


def test_blocks_with_hard_negatives_stay_in_one_place():
    assert "same step" in made().why_one_place
    assert made(negatives="uniform").why_one_place is None
