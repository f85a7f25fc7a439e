"""SlimCLR: its step against plain networks, slow start, queue and keys, gradient ratio, narrow chains, resume."""

import copy
from functools import partial

import pytest
import torch
from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
from lightning.pytorch.callbacks import ModelCheckpoint
from reference.slimclr import rows_of_pairs, rows_with_queue, step_loss
from torch import nn
from torch.optim import SGD
from training import assert_equal_weights, train

from datamodules.batch import Batch
from datamodules.digits import Digits
from datamodules.views.transforms import SimCLRViews, Views
from experiments.measure.cost import network_cost
from experiments.measure.workbench import plain_steps
from experiments.measure.yardstick import end_to_end
from experiments.probing.batch_norm import reestimate
from losses.errors import NetworkError, UsageError
from losses.info_nce import PairContrast, QueueContrast
from losses.width_weights import all_equal
from models.methods.slimclr import SlimCLR
from models.networks.layers.slimmable import Slimmable
from models.networks.mlp import MLP
from models.networks.resnet import ResNet
from models.networks.slimmed import narrowed
from models.networks.vgg import VGG

SHAPE = (1, 8, 8)
WIDTHS = (1.0, 0.5, 0.25)
queue = partial(QueueContrast, size=48, momentum=0.9)
digits = partial(Digits, batch_size=32, views=Views(partial(SimCLRViews, blur=0, flip=0)))
CONTRASTS = pytest.mark.parametrize("contrast", [queue, PairContrast], ids=["MoCo", "SimCLR"])


moco_head = partial(MoCoProjectionHead, hidden_dim=8, output_dim=6)


def made(contrast=queue, projector=moco_head, **options):
    torch.manual_seed(0)
    options = {"widths": WIDTHS, "optimizer": partial(SGD, lr=0.05, momentum=0.9), **options}
    network = options.pop("network", partial(VGG, plan=[8, "M", 16]))
    return SlimCLR(network, SHAPE, 10, contrast=contrast, projector=projector, **options)


def batch(size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, size, *SHAPE, generator=generator)
    return Batch(a, torch.zeros(size, dtype=torch.long), ((1.0, a, a + 0.5 * b),))


def loss_of(model, data):
    _, x = model.step_input(data)
    return model.local_loss(0, model.block_output(0, x), data)


# -- the step ------------------------------------------------------------------------------------------------------


def padded_sum(model, plain):
    """Gradients of plain networks of all widths, added up in the place that they have in the slimmable one."""
    places = copy.deepcopy(model.part_modules(0))
    totals = {name: torch.zeros(p.numel(), dtype=torch.double) for name, p in places.named_parameters()}
    for width, network in plain.items():
        for number, parameter in enumerate(places.parameters()):  # which entry of the narrow network came from which
            parameter.data = torch.arange(parameter.numel(), dtype=torch.double).view_as(parameter) + 1e6 * number
        names = [name for name, _ in places.named_parameters()]
        for source, parameter in zip(narrowed(places, width).parameters(), network.parameters(), strict=True):
            number = int(source.flatten()[0] // 1e6)
            entries = (source.detach() - 1e6 * number).long().flatten()
            totals[names[number]][entries] += parameter.grad.flatten()
    return totals


@CONTRASTS
def test_a_step_has_the_gradients_of_the_plain_networks(contrast):
    head = partial(SimCLRProjectionHead, hidden_dim=8, output_dim=6)
    model = made(contrast, head, distillation=0.3, distillation_temperature=2.0).double().train()
    data = batch()
    data = data._replace(views=tuple((s, a.double(), b.double()) for s, a, b in data.views))
    plain = {width: narrowed(model.part_modules(0), width) for width in WIDTHS}
    before = copy.deepcopy(model)
    loss_of(model, data).backward()
    _, a, b = data.views[0]
    rows = {}
    if contrast is queue:
        block, project = before.key_encoder
        keys = project(block(b)).detach()
        bank = before.contrast.queue.bank.double()
        for width, (unit, head) in plain.items():
            rows[width] = rows_with_queue(head(unit(a)), keys, bank)
    else:
        for width, (unit, head) in plain.items():
            rows[width] = rows_of_pairs(head(unit(a)), head(unit(b)))
    theirs = step_loss(rows, before.contrast.temperature, 0.3, 2.0)
    theirs.backward()
    torch.testing.assert_close(loss_of(before, data), theirs)
    gradients = {name: p.grad for name, p in model.part_modules(0).named_parameters()}
    for name, total in padded_sum(before, plain).items():
        torch.testing.assert_close(gradients[name].flatten(), total, msg=name)


def test_without_distillation_and_weights_the_loss_is_the_sum_of_the_widths_losses():
    model = made(distillation=0.0, weighting=all_equal)
    recorded = {}
    model.record = lambda k, name, value: recorded.update({name: value})
    loss = loss_of(model, batch())
    losses = [value for name, value in recorded.items() if name.endswith("loss")]
    assert [name for name in recorded if name.endswith("loss")] == ["w1/loss", "w0.5/loss", "w0.25/loss"]
    torch.testing.assert_close(loss, sum(losses))
    assert 0 <= recorded["w0.25/pretext_top1"] <= 1


@CONTRASTS
def test_cosines_are_of_full_precision_under_autocast(contrast):
    model = made(contrast)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, x = model.step_input(batch())
        views, keys = model.block_output(0, x)[1.0], model.keys(batch())
        found, embeddings = model._cosines(0, 1.0, views, keys), [model.heads[0](view) for view in views]
    assert embeddings[0].dtype == torch.bfloat16
    torch.testing.assert_close(found, model.contrast([nn.functional.normalize(z.float()) for z in embeddings], keys))


def test_pretext_accuracy_is_the_share_of_rows_whose_first_entry_is_the_largest():
    model, recorded = made(), {}
    model.record = lambda k, name, value: recorded.update({name: value})
    rows = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.2, 0.1], [0.2, 0.1, 0.5], [0.8, 0.1, 0.7]])
    model._cosines = lambda k, width, views, keys: rows if width == 1 else -rows
    loss_of(model, batch())
    assert recorded["w1/pretext_top1"] == 0.75
    assert recorded["w0.5/pretext_top1"] == recorded["w0.25/pretext_top1"] == 0


def test_the_scale_of_the_distillation_is_the_square_of_its_temperature_unless_told():
    assert made(distillation_temperature=3.0).distillation_scale == 9
    assert made(distillation_temperature=3.0, distillation_scale=0.5).distillation_scale == 0.5


# -- slow start ----------------------------------------------------------------------------------------------------


@CONTRASTS
def test_before_the_narrow_widths_begin_a_run_is_that_of_the_whole_network_alone(contrast, tmp_path):
    slow, alone = made(contrast, start_epoch=2), made(contrast, widths=[1.0])
    begun = copy.deepcopy(slow.state_dict())
    train(slow, tmp_path, digits())
    train(alone, tmp_path, digits())
    states = slow.state_dict(), alone.state_dict()
    for name, value in states[1].items():
        assert torch.equal(states[0][name], value), name
    narrow = [name for name in begun if ".norms.1." in name or ".norms.2." in name]
    assert all(torch.equal(states[0][name], begun[name]) for name in narrow if not name.startswith("key_encoder"))
    gradients = {name: p.grad for name, p in slow.named_parameters()}
    assert all(gradients[name] is None for name in narrow if name in gradients)
    train(made(contrast, start_epoch=1), tmp_path, digits(), max_epochs=1)


def test_narrow_widths_begin_with_their_epoch(tmp_path):
    model, seen = made(start_epoch=1), []
    model.block_output = lambda k, x: seen.append([*(found := SlimCLR.block_output(model, k, x))]) or found
    train(model, tmp_path, digits(), limit_train_batches=2)
    assert seen == [[1.0]] * 2 + [[1.0, 0.5, 0.25]] * 2


# -- keys and queue ------------------------------------------------------------------------------------------------


def test_queue_moves_on_by_a_batch_whatever_the_widths():
    for widths in ([1.0], WIDTHS):
        model = made(widths=widths)
        first = model.contrast.queue.bank.clone()
        loss_of(model, batch())
        assert int(model.contrast.queue.bank_ptr) == 6
        block, head = model.key_encoder
        model.key_encoder.load_state_dict(made(widths=widths).key_encoder.state_dict())
        keys = nn.functional.normalize(head(block(batch().views[0][2])), dim=1)
        torch.testing.assert_close(model.contrast.queue.bank, torch.cat([keys, first[6:]]))


def test_key_encoder_follows_the_parameters_and_gets_no_gradient():
    model = made()
    step = plain_steps(model, batch())
    next(step)
    encoder, network = copy.deepcopy(model.key_encoder), copy.deepcopy(model.part_modules(0))
    next(step)
    for key, old, own in zip(model.key_encoder.parameters(), encoder.parameters(), network.parameters(), strict=True):
        assert key.grad is None
        assert not key.requires_grad
        torch.testing.assert_close(key.data, 0.9 * old.data + 0.1 * own.data)
    moved = dict(model.key_encoder.named_buffers())
    statistics = {name for name, b in encoder.named_buffers() if not torch.equal(b, moved[name])}
    assert statistics
    assert all(".norms.0." in name for name in statistics)  # keys are those of the whole network
    optimized = {id(p) for p in model.block_parameters(0)}
    assert not optimized & {id(p) for p in model.key_encoder.parameters()}


def test_keys_do_not_depend_on_the_narrow_widths():
    model, other = made(), made(widths=[1.0])
    torch.testing.assert_close(model.keys(batch()), other.keys(batch()), rtol=0, atol=0)
    assert made(PairContrast).key_encoder is None
    assert made(PairContrast).keys(batch()) is None


def test_keys_are_of_the_encoder_after_it_followed_the_network():
    model = made()
    for parameter in model.part_modules(0).parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    keys = model.keys(batch())
    block, head = model.key_encoder  # in training mode: its statistics do not matter
    torch.testing.assert_close(keys, nn.functional.normalize(head(block(batch().views[0][2])), dim=1))


def test_a_run_resumed_within_an_epoch_ends_as_one_that_was_not_cut(tmp_path):
    def run(resume=None):
        model = made(start_epoch=1)
        saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)
        options = {"callbacks": [saved], "enable_checkpointing": True}
        train(model, tmp_path, digits(), resume=resume, **options)
        return model

    whole = run()
    assert (
        int(whole.contrast.queue.bank_ptr) == 8 * 32 % 48 // 32 * 32
    )  # a queue of 48 is full after every second batch
    for step in (3, 6):
        assert_equal_weights(whole, run(tmp_path / f"step={step}.ckpt"))


# -- watching ------------------------------------------------------------------------------------------------------


def test_gradient_ratio_is_logged_of_the_step_that_is_taken(tmp_path):
    model, ratios = made(clip=0.01), []
    layers = [layer for layer in model.part_modules(0).modules() if isinstance(layer, Slimmable)]

    class Kept(SGD):
        def step(self, closure=None):
            if layers[0].weight.grad is None:  # a rehearsal with a weight of its own
                return super().step(closure)
            whole = [layer.weight.grad.norm() for layer in layers]
            narrow = [layer.weight.grad[layer.prefix(0.25)].norm() for layer in layers]
            each = [(a**2 - b**2).sqrt() / b for a, b in zip(whole, narrow, strict=True)]
            a, b = sum(whole) / len(layers), sum(narrow) / len(layers)
            ratios.append((sum(each) / len(each), (a**2 - b**2).sqrt() / b))
            return super().step(closure)

    model.make_optimizer = partial(Kept, lr=0.05)
    train(model, tmp_path, digits(), max_epochs=1, log_every_n_steps=1)
    own, of_means = ratios[-1]
    assert model.latest["train/block1/w0.25/gradient_ratio"] == pytest.approx(own.item(), rel=1e-4)
    assert model.latest["train/block1/w0.25/gradient_ratio_of_means"] == pytest.approx(of_means.item(), rel=1e-4)
    assert model.latest["train/block1/grad_norm"] > 0.1  # not clipped yet
    logged = {name for name in model.latest if name.endswith("gradient_ratio")}
    assert logged == {"train/block1/w0.5/gradient_ratio", "train/block1/w0.25/gradient_ratio"}


# -- beside training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_narrow_chain_is_an_ordinary_network_with_the_widths_outputs(width, training):
    model = made().train(training)
    next(plain_steps(model, batch()))
    model.train(training)
    plain = VGG(SHAPE, 10, plan=[int(8 * width), "M", int(16 * width)]).train(training)
    plain.load_state_dict(model.narrow(width).state_dict())
    with model.width.at(width):
        torch.testing.assert_close(plain.units(batch().images), model.blocks[0](batch().images))
    assert plain(batch().images).shape == (6, 10)
    assert model.narrow(width).name == f"VGG at width {width:g}"


def test_features_are_those_of_every_width():
    model, images = made().eval(), batch().images
    found = model.block_features(images)
    widths = {"block1/gap": 16, "block1/w0.5": 8, "block1/w0.25": 4}
    kinds = {"block1/embedding", "block1/embedding_w0.5", "block1/embedding_w0.25"}
    assert found.keys() == widths.keys() | kinds
    assert model.nested_features == [*widths]
    for kind, width in zip(widths, WIDTHS, strict=True):
        chain = model.narrow(width).eval()
        torch.testing.assert_close(found[kind], chain.units(images).mean((2, 3)))
    assert all(found[kind].shape == (6, 6) for kind in kinds)


def test_statistics_of_all_widths_can_be_estimated_anew():
    model = made()
    reestimate(model, [batch().images])
    with model.width.at(0.25):
        first = model.blocks[0].conv1
        x = first[0](batch().images)
    torch.testing.assert_close(first[1].norms[2].running_mean, x.mean((0, 2, 3)))


def test_cost_is_that_of_all_widths_and_the_yardstick_the_whole_network():
    model = made(PairContrast)
    cost = network_cost(model, 8, "plain")
    macs = 0
    for width in WIDTHS:
        c1, c2 = int(8 * width), int(16 * width)
        macs += 2 * (64 * 9 * c1 + 16 * 9 * c1 * c2 + c2 * int(8 * width) + int(8 * width) * 6)
    assert cost.total_macs == macs
    whole = end_to_end(model, checkpoint_segments=2)
    assert whole.width.widths == (1.0,)
    assert whole.blocks[0].segments == 2
    assert isinstance(whole.contrast, PairContrast)
    assert cost.backprop_macs == 2 * (64 * 9 * 8 + 16 * 9 * 8 * 16 + 16 * 8 + 8 * 6)


@pytest.mark.parametrize(
    "network",
    [
        partial(ResNet, depth=18, stem="cifar", widths=[16, 16, 32, 32]),
        partial(ResNet, depth=50, stem="cifar", widths=[4, 4, 4, 4]),
    ],
)
def test_residual_networks_take_a_step_at_every_width(network):
    # A width at which a 1×1 convolution with stride 2 reads less than 8 channels corrupts memory in torch's backward.
    model = made(network=network, widths=[1.0, 0.5])
    next(plain_steps(model, batch()))
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [0.5, 0.25]}, "begin with 1.0 and fall"),
        ({"widths": [1.0, 0.05]}, "would have none"),
        ({"network": partial(MLP, hidden=[8])}, "pools feature maps"),
        ({"compile": True}, "leave compile out"),
    ],
)
def test_what_cannot_be_slim_is_refused(options, message):
    with pytest.raises((NetworkError, UsageError), match=message):
        made(**options)


def test_batches_without_views_and_several_processes_are_refused():
    with pytest.raises(UsageError, match="give the data views"):
        made().step_input(batch()._replace(views=()))
    assert "one queue and one key encoder" in made().why_one_process
