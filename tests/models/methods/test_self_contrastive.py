"""Self-contrastive Forward-Forward: the released loop, pairs, isolation, rules of layers, resume."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from reference.self_contrastive import SlowLayers, each_standardised
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import StepLR
from training import Recorder, assert_equal_weights, assert_isolated, batches, train

from datamodules.augment import Augment
from datamodules.digits import Digits
from experiments.callbacks.online_probe import OnlineProbe
from experiments.measure.yardstick import end_to_end
from losses.errors import NetworkError, UsageError
from models.methods import self_contrastive as scff
from models.methods.backprop import Backprop
from models.methods.self_contrastive import LayerRule, SelfContrastive
from models.networks.pair_layers import Activity, PairCNN, PairConv, PairMLP
from models.networks.vgg import VGG

mlp = partial(PairMLP, hidden=[12, 9])
cnn = partial(PairCNN, layers=[PairConv(6, kernel=5), PairConv(8)])
RULES = [LayerRule(2.0, 3.0, 0.1), LayerRule(0.5, 1.5)]
images = partial(Digits, batch_size=40)


def made(network=mlp, shape=(1, 8, 8), **options):
    torch.manual_seed(0)
    return SelfContrastive(shape, 10, network, **{"rules": RULES, "optimizer": partial(SGD, lr=0.5), **options})


@pytest.fixture
def batch():
    return batches(1)[0]


@pytest.fixture
def shifts(monkeypatch):
    """The shifts that are drawn, in order."""
    drawn = []

    def recorded(x, shift):
        drawn.append(shift)
        return neighbour(x, shift)

    neighbour = scff.neighbour
    monkeypatch.setattr(scff, "neighbour", recorded)
    return drawn


@pytest.mark.parametrize("pairing", ["first", "all"])
@pytest.mark.parametrize("each", [None, 1])
def test_layers_learn_as_by_the_released_code(pairing, each, shifts, tmp_path):
    model = made(partial(mlp, pairing=pairing), epochs_per_block=each)
    affine = [model.blocks[0].fc1.affine[1], model.blocks[1].fc2.affine]
    slow = SlowLayers([(one.weight, one.bias) for one in affine], [(2.0, 3.0, 0.1), (0.5, 1.5, 0.0)], pairing, lr=0.5)
    recorder = Recorder()
    train(model, tmp_path, images(), [recorder], limit_train_batches=3)
    drawn = [*shifts]
    for step, batch in enumerate(recorder.batches):
        x = batch.images.flatten(1)
        learners = [0, 1] if each is None else [step // 3]
        if each and step < 3 and pairing == "all":
            drawn.insert(1, 1)  # the reference goes through both layers
        slow.step(x, x, drawn, learners)
    assert not drawn
    for one, (weight, bias) in zip(affine, slow.weights, strict=True):
        torch.testing.assert_close(one.weight, weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.bias, bias, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("network", [mlp, partial(mlp, pairing="all"), cnn])
def test_blocks_are_isolated(network, batch):
    assert_isolated(made(network, (3, 8, 8)), batch)


def test_layers_below_stay_as_they_are(tmp_path):
    seen = []
    look = LambdaCallback(
        on_train_epoch_end=lambda _, model: seen.append([p.clone() for b in model.blocks for p in b.parameters()])
    )
    train(made(epochs_per_block=1), tmp_path, images(), [look])
    (w1, b1, w2, b2), after = seen
    assert all(map(torch.equal, (w1, b1), after[:2]))
    assert not any(map(torch.equal, (w2, b2), after[2:]))


def test_no_image_is_its_own_negative(batch, shifts):
    model = made(partial(mlp, pairing="all"), (3, 8, 8))
    found = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    for step in range(400):
        model.trainer = SimpleNamespace(global_step=step)
        model.block_output(0, (batch.images, batch.images))
    hook.remove()
    assert {shifts.count(shift) > 40 for shift in range(1, 6)} == {True}  # of 80 expected
    assert len(shifts) == 400 == sum(shifts.count(shift) for shift in range(1, 6))
    for (first, second), shift in zip(found, shifts, strict=True):
        assert torch.equal(first, torch.cat([batch.images] * 2))
        assert torch.equal(second[:6], batch.images)
        assert torch.equal(second[6:], batch.images[[(i + shift) % 6 for i in range(6)]])


def test_views_are_pairs(batch):
    model = made(shape=(3, 8, 8))
    ((_, a, b),) = batch.views
    _, (first, second) = model.step_input(batch)
    assert torch.equal(first, a)
    assert torch.equal(second, b)
    assert not torch.equal(a, b)
    _, (first, second) = model.step_input(batch._replace(views=()))
    assert torch.equal(first, batch.images)
    assert torch.equal(second, batch.images)


def test_a_negative_is_the_first_view_beside_the_second_one_of_another_image(batch, shifts):
    model, read = made(shape=(3, 8, 8)), []
    model.trainer = SimpleNamespace(global_step=0)
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    ((_, a, b),) = batch.views
    model.block_output(0, (a, b))
    assert torch.equal(read[0].first, torch.cat([a, a]))
    assert torch.equal(read[0].second, torch.cat([b, b.roll(-shifts[0], 0)]))


def test_goodness_of_half_precision_is_that_of_full_precision(batch):
    model, z = made(shape=(3, 8, 8)), 3 * torch.randn(12, 12).bfloat16()
    halves, whole = (model.local_loss(0, Activity(one, one), batch) for one in (z, z.float()))
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, whole)


def test_logged_goodness_is_the_mean_of_the_pairs(batch):
    model, found, z = made(shape=(3, 8, 8)), {}, torch.randn(12, 9)
    model.logs_this_step, model.record = True, lambda k, name, value: found.update({name: value})
    model.local_loss(1, Activity(z, z), batch)
    positive, negative = z.clamp(min=0).square().mean(1).chunk(2)
    torch.testing.assert_close(found["positive_goodness"], positive.mean())
    torch.testing.assert_close(found["negative_goodness"], negative.mean())


def test_a_layer_that_pairs_anew_gets_positive_data_others_get_both(batch):
    for pairing in ("first", "all"):
        model = made(partial(mlp, pairing=pairing), (3, 8, 8))
        found = model.block_output(0, (batch.images, batch.images))
        handed = model.hand_on(0, found)
        handed = (handed,) if pairing == "all" else handed
        assert not any(one.requires_grad for one in handed)
        assert torch.equal(torch.cat(handed), found.features[: 6 * len(handed)])
        assert len(handed) == (1 if pairing == "all" else 2)


def test_pairs_are_those_of_the_step(batch, shifts):
    """Not of random numbers, which layers in other processes would draw otherwise."""
    model, again = (made(partial(mlp, pairing="all"), (3, 8, 8)) for _ in range(2))
    for step in range(30):
        for one in (model, again):
            one.trainer = SimpleNamespace(global_step=step)
            torch.manual_seed(id(one))
            one.block_output(1, torch.ones(6, 12))
    assert shifts[::2] == shifts[1::2]
    assert len({*shifts}) == 5
    of_another_layer = []
    for step in range(30):
        model.trainer = SimpleNamespace(global_step=step)
        model.block_output(0, (batch.images, batch.images))
        of_another_layer.append(shifts.pop())
    assert of_another_layer != shifts[::2]
    assert of_another_layer[1:] != shifts[:-2:2]  # nor what this layer draws in the next step


def test_one_image_alone_is_refused(batch):
    with pytest.raises(UsageError, match="batches hold at least 2"):
        made().step_input(batch._replace(images=batch.images[:1], labels=batch.labels[:1]))


def test_features_are_standardised_units_of_layers(batch):
    three = partial(PairCNN, layers=[PairConv(6, kernel=5), PairConv(8), PairConv(4)])
    model = made(three, (3, 8, 8), rules=None).eval()
    with torch.no_grad():
        found = model.block_features(batch.images)
        maps = [*model.walk(batch.images)]
    units = [each_standardised(F.avg_pool2d(one, 2, ceil_mode=True)).flatten(1) for one in maps]
    torch.testing.assert_close(found["block1/units"], units[0])
    torch.testing.assert_close(found["block3/all"], torch.cat(units, 1))
    torch.testing.assert_close(found["block3/all_but_first"], torch.cat(units[1:], 1))
    torch.testing.assert_close(found["block2/gap"], maps[1].mean((2, 3)))
    known = model.block_features(batch.images, last=2)
    assert [*known] == ["block1/gap", "block1/units", "block2/gap", "block2/units", "block2/all"]


def test_features_of_vectors_are_standardised_too(batch):
    model = made(shape=(3, 8, 8)).eval()
    found = model.block_features(batch.images)
    for name, features in zip(("block1", "block2"), model.walk(batch.images), strict=True):
        torch.testing.assert_close(found[f"{name}/units"], each_standardised(features))
        torch.testing.assert_close(found[f"{name}/gap"], features)


def test_features_are_those_of_an_image_beside_itself(batch):
    model = made(shape=(3, 8, 8)).eval()
    positive = model.block_output(0, (batch.images, batch.images)).features[:6]
    torch.testing.assert_close(next(model.walk(batch.images)), positive)


def test_each_layer_has_its_rule(tmp_path):
    rules = [
        LayerRule(optimizer=partial(AdamW, lr=0.1), scheduler=partial(StepLR, step_size=2, gamma=0.5)),
        LayerRule(scheduler=partial(StepLR, step_size=3, gamma=0.1)),
    ]
    model = made(rules=rules, epochs_per_block=[1, 2], scheduler_interval="step")
    trainer = train(model, tmp_path, images(), max_epochs=3, limit_train_batches=5)
    assert [type(optimizer) for optimizer in trainer.optimizers] == [AdamW, SGD]
    # 5 steps: halved after 2 and 4; 10 steps: after 3, 6 and 9
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates == pytest.approx([0.1 / 4, 0.5 / 1000])


def test_layers_without_schedules_of_their_own_have_that_of_all(tmp_path):
    model = made(scheduler=partial(StepLR, step_size=2, gamma=0.5), scheduler_interval="step")
    trainer = train(model, tmp_path, images(), max_epochs=1, limit_train_batches=5)
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == pytest.approx([0.5 / 4] * 2)


def test_a_layer_s_own_optimizer_and_schedule_are_tried_before_training(tmp_path):
    with pytest.raises(UsageError, match="step_size of StepLR must not be negative"):
        train(made(rules=[LayerRule(scheduler=partial(StepLR, step_size=-1))]), tmp_path, images())
    with pytest.raises(UsageError, match="cannot train blocks"):
        train(made(rules=[LayerRule(optimizer=partial(SGD, lr=-1.0))]), tmp_path, images())


def test_it_is_compared_with_backpropagation_of_its_first_layer_s_optimizer():
    model = made(rules=[LayerRule(optimizer=partial(AdamW, lr=0.1)), LayerRule()])
    whole = end_to_end(model)
    assert isinstance(whole, Backprop)
    assert isinstance(whole.part_optimizer(0), AdamW)
    assert isinstance(end_to_end(made()).part_optimizer(0), SGD)
    assert model.plan().views == 2


def test_one_rule_is_all_layers_s():
    assert [rule.above for rule in made(rules=[LayerRule(5.0)]).rules] == [5.0, 5.0]
    assert [rule.above for rule in made(rules=None).rules] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([LayerRule()] * 3, "3 rules for 2 layers: give one for all, or one for each"),
        ([LayerRule(), LayerRule(scheduler=partial(StepLR, step_size=1))], "give all one, or none"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules, said):
    with pytest.raises(UsageError, match=said):
        made(rules=rules)


def test_a_network_that_reads_no_pairs_is_refused():
    with pytest.raises(NetworkError, match=r"Layers of VGG read no pairs \(conv1, conv2\): use .*PairMLP or PairCNN"):
        made(partial(VGG, plan=(4, 4)))


def test_labels_reach_no_weight(tmp_path):
    class Mislabelled(Digits):
        def training_batch(self, batch):
            return super().training_batch(batch._replace(labels=9 - batch.labels))

    one, other = made(), made()
    train(one, tmp_path, images())
    train(other, tmp_path, Mislabelled(batch_size=40))
    assert_equal_weights(one, other)


def test_a_run_resumed_within_an_epoch_draws_the_same_pairs(tmp_path):
    def run(resume=None):
        model = made(partial(mlp, pairing="all"))
        saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=6)
        options = {"callbacks": [saved], "enable_checkpointing": True, "limit_train_batches": 1.0}
        train(model, tmp_path, images(batch_size=300, augment=Augment(pad=1)), resume=resume, **options)
        return model

    whole = run()
    assert_equal_weights(whole, run(tmp_path / "step=6.ckpt"))


def test_an_online_probe_reads_what_is_handed_on(tmp_path):
    model, probe = made(partial(PairMLP, hidden=[100, 50]), optimizer=partial(AdamW, lr=3e-3)), OnlineProbe()
    trainer = train(model, tmp_path, images(), [probe], limit_train_batches=1.0, limit_val_batches=1.0, max_epochs=3)
    assert trainer.callback_metrics["probe_online/block1/gap/top1"] > 0.5
    assert trainer.callback_metrics["probe_online/block2/gap/top1"] > 0.4


def test_goodness_tells_pairs_apart_and_is_logged(tmp_path):
    model = made(partial(PairMLP, hidden=[100]), rules=[LayerRule(4.0, 6.0, 1e-4)], optimizer=partial(AdamW, lr=3e-3))
    found = []

    class Look(Recorder):
        def on_train_batch_end(self, trainer, pl_module, *_):
            found.append(dict(pl_module.latest))

    train(model, tmp_path, images(), [Look()], max_epochs=4, limit_train_batches=1.0, log_every_n_steps=1)
    first, last = (found[k] for k in (1, -1))  # none before the first
    for name in ("positive_goodness", "negative_goodness", "separation", "loss"):
        assert f"train/block1/{name}" in last
    assert last["train/block1/positive_goodness"] > last["train/block1/negative_goodness"]
    assert last["train/block1/separation"] > max(0.7, first["train/block1/separation"])
    assert last["train/block1/loss"] < first["train/block1/loss"]
