"""Cells: plain loops, noise that stops at the decoder, two optimizers in one, both schedules, isolation, resume."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from reference.unsupervised_forward_forward import SlowCell, normalised
from torch.optim import SGD, Adam, AdamW
from training import Recorder, assert_equal_weights, assert_isolated, train

from datamodules.augment import Augment
from datamodules.digits import Digits
from experiments.cli import main
from experiments.measure.cost import network_cost
from experiments.measure.yardstick import end_to_end
from experiments.probing.features import Splits, block_reader
from losses.errors import NetworkError, UsageError
from models.methods.unsupervised_forward_forward import UnsupervisedForwardForward, latent
from models.networks.heads.cells import AdversarialCell, AutoEncoderCell, DenoisingCell
from models.networks.mlp import MLP
from models.networks.strided import StridedCNN

perceptron = partial(MLP, hidden=[20, 16, 12], batch_norm=False)
convolutions = partial(StridedCNN, channels=[4, 6, 8])
CELLS = {"plain": AutoEncoderCell, "denoising": DenoisingCell, "adversarial": AdversarialCell}
cells = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
networks = pytest.mark.parametrize("network", [perceptron, convolutions], ids=["vectors", "maps"])


def made(network=perceptron, **options):
    torch.manual_seed(0)
    options = {"optimizer": partial(AdamW, lr=1e-3), **options}
    return UnsupervisedForwardForward(network, (1, 8, 8), 10, **options)


def weights(model, k):
    """Of block k and of its cell, a copy."""
    return [p.detach().clone() for p in model.part_modules(k).parameters()]


def same(ours, theirs):
    """For each weight whether nothing of it differs."""
    return {torch.equal(one, other) for one, other in zip(ours, theirs, strict=True)}


def ready(count=5):
    """Some images as training gives them."""
    data = Digits(batch_size=count)
    data.prepare_data()
    data.setup("fit")
    return data.evaluation_batch(next(iter(data.train_dataloader())))


# -- the algorithm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_cells_learn_as_in_plain_loops_with_an_optimizer_for_every_loss(name, tmp_path, monkeypatch):
    """Two epochs of four batches; each discriminator of the reference has an optimizer of its own."""
    adversarial = {"rate": 5e-3, "betas": (0.3, 0.9), "width": 9}
    model = made(cell=partial(CELLS[name], **adversarial if name == "adversarial" else {}))
    slow = {"adversarial": (0.1, 1.0), "rate": 5e-3, "betas": (0.3, 0.9)} if name == "adversarial" else {}
    references = [SlowCell([*model.part_modules(k).parameters()], 1e-3, **slow) for k in range(3)]
    recorder, noises, draw = Recorder(), [], torch.randn_like
    monkeypatch.setattr("torch.randn_like", lambda x: noises.append(draw(x)) or noises[-1])
    train(model, tmp_path, callbacks=[recorder])
    drawn = iter(noises)
    for batch in recorder.batches:
        x = batch.images
        for reference in references:
            noise = 0.3 * next(drawn).flatten(1) if name == "denoising" else 0.0
            x = reference.learn(x.flatten(1), noise)
    assert len(recorder.batches) == 8
    assert len(noises) == (24 if name == "denoising" else 0)
    for k, reference in enumerate(references):
        for (key, ours), theirs in zip(model.part_modules(k).named_parameters(), reference.weights, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda said, key=key: f"{key}: {said}")


@cells
def test_what_the_next_cell_reads_is_normalised_free_of_noise_and_detached(cell):
    model, images = made(cell=cell), ready().images
    with torch.no_grad():
        right = normalised(model.blocks[0].fc1(images))
    torch.testing.assert_close(right.mean(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(right.square().mean(1), torch.ones(5), atol=1e-3, rtol=0)
    encoded = model.block_output(0, images)
    handed_on = model.hand_on(0, encoded)
    assert not handed_on.requires_grad
    assert torch.equal(encoded.source, images)
    torch.testing.assert_close(handed_on, right)
    assert torch.equal(handed_on, encoded.features.detach()) == (cell is not DenoisingCell)
    assert torch.equal(handed_on, next(iter(model.walk(images))))


def test_a_denoising_cell_rebuilds_what_it_was_given_without_the_noise():
    model, batch = made(cell=partial(DenoisingCell, noise=2.0)), ready()
    torch.manual_seed(3)
    loss = model.local_loss(0, model.block_output(0, batch.images), batch)
    torch.manual_seed(3)
    noisy = model.blocks[0](batch.images + 2.0 * torch.randn_like(batch.images))
    torch.testing.assert_close(loss, (model.heads[0](noisy) - batch.images).square().mean())


def test_what_listens_to_a_block_hears_it_without_noise_first():
    model, images, heard = made(cell=DenoisingCell), ready().images, []
    model.blocks[0].register_forward_hook(lambda block, x, y: heard.append(y.detach()))
    handed_on = model.block_output(0, images).handed_on
    assert torch.equal(heard[0], handed_on)
    assert not torch.equal(heard[1], handed_on)


def test_maps_are_normalised_over_channels_and_positions():
    features = made(convolutions).blocks[0](ready().images)
    assert features.shape[1:] == (4, 4, 4)
    torch.testing.assert_close(features.mean((1, 2, 3)), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.square().mean((1, 2, 3)), torch.ones(5), atol=1e-3, rtol=0)


@networks
@cells
def test_losses_reach_their_own_cell_alone_decoder_and_discriminator_included(cell, network):
    assert_isolated(made(network, cell=cell), ready(20))


@cells
def test_labels_reach_no_weight(cell, tmp_path):
    class Mislabelled(Digits):
        def training_batch(self, batch):
            return super().training_batch(batch._replace(labels=9 - batch.labels))

    models = []
    for data in (Digits(batch_size=32), Mislabelled(batch_size=32)):
        models.append(made(cell=cell))
        torch.manual_seed(1)
        train(models[-1], tmp_path, data)
    assert_equal_weights(*models)


def test_what_is_logged(tmp_path):
    logged = {}
    for name, cell in CELLS.items():
        model = made(cell=cell, num_blocks=2)
        train(model, tmp_path, max_epochs=1, log_every_n_steps=4)
        logged[name] = {metric.removeprefix("train/block2/") for metric in model.latest if "block2" in metric}
        error = model.latest["train/block2/reconstruction"]
        if name == "adversarial":
            parts = [model.latest[f"train/block2/{part}"] for part in ("generator", "discriminator")]
            assert model.latest["train/block2/loss"] == pytest.approx(error + 0.1 * parts[0] + parts[1], rel=1e-5)
            assert 0 <= model.latest["train/block2/discriminator_accuracy"] <= 1
        else:
            assert model.latest["train/block2/loss"] == pytest.approx(error)
    common = {"loss", "lr", "grad_norm", "reconstruction"}
    assert logged["plain"] == logged["denoising"] == common
    assert logged["adversarial"] == common | {"generator", "discriminator", "discriminator_accuracy"}


# -- optimizers ---------------------------------------------------------------------------------------


def test_a_discriminator_is_a_group_of_its_cells_optimizer():
    model = made(cell=partial(AdversarialCell, rate=3e-4))
    groups = model.part_optimizer(1).param_groups
    assert [(group["lr"], group["betas"]) for group in groups] == [(1e-3, (0.9, 0.999)), (3e-4, (0.5, 0.999))]
    own = [[*map(id, group["params"])] for group in groups]
    assert own[1] == [*map(id, model.cell(1).discriminator.parameters())]
    assert own[0] == [*map(id, [*model.blocks[1].parameters(), *model.cell(1).decoder.parameters()])]
    assert len(made().part_optimizer(1).param_groups) == 1


def test_an_optimizer_without_betas_is_refused_for_a_discriminator(tmp_path):
    with pytest.raises(UsageError, match="AdversarialCell sets betas of its discriminator, which SGD does not have"):
        train(made(cell=AdversarialCell, optimizer=partial(SGD, lr=0.1)), tmp_path)
    assert made(optimizer=partial(SGD, lr=0.1)).part_optimizer(0)
    assert made(cell=AdversarialCell, optimizer=Adam).part_optimizer(0)


# -- schedules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [AutoEncoderCell, AdversarialCell])
def test_separate_training_of_the_first_cell_is_joint_training_and_a_frozen_cell_stays(cell, tmp_path):
    joint, separate = made(cell=cell), made(cell=cell, epochs_per_block=1)
    before = weights(separate, 1)
    recorder, seen = [], Recorder()

    class Watch(Recorder):
        def on_train_epoch_end(self, trainer, pl_module):
            recorder.append([weights(pl_module, k) for k in range(3)])

    torch.manual_seed(1)
    train(joint, tmp_path, Digits(batch_size=32), max_epochs=1)
    torch.manual_seed(1)
    train(separate, tmp_path, Digits(batch_size=32), [Watch(), seen], max_epochs=3)
    first, second, third = recorder
    assert len(seen.batches) == 12
    assert same(weights(joint, 0), first[0]) == {True}
    assert same(first[0], third[0]) == {True}
    assert same(first[1], before) == {True}
    assert same(second[1], before) == {False}
    assert same(second[1], third[1]) == {True}
    assert same(weights(joint, 1), before) == {False}
    assert separate.learned == 3


def test_a_frozen_denoising_cell_hands_on_without_noise():
    model = made(cell=DenoisingCell, frozen_blocks=1)
    encoded = model.block_output(0, ready().images)
    assert encoded.features is encoded.handed_on


@cells
def test_a_run_resumed_within_an_epoch_ends_the_same(cell, tmp_path):
    def run(resume=None):
        model = made(cell=cell)
        saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=6)
        options = {"callbacks": [saved], "enable_checkpointing": True, "limit_train_batches": 1.0}
        torch.manual_seed(5 if resume else 1)
        train(model, tmp_path, Digits(batch_size=300, augment=Augment(pad=1)), resume=resume, **options)
        return model

    assert_equal_weights(run(), run(tmp_path / "step=6.ckpt"))


# -- read-out -----------------------------------------------------------------------------------------


@networks
def test_probes_read_each_cell_and_their_concatenation(network):
    model, images = made(network), ready().images
    found = model.block_features(images)
    values = [latent(v) for v in model.walk(images)]
    kinds = {"gap", "latent"} if network is convolutions else {"gap"}
    assert set(found) == {f"block{k}/{kind}" for k in (1, 2, 3) for kind in kinds} | {
        "block3/all",
        "block3/all_but_first",
    }
    assert torch.equal(found["block3/all"], torch.cat(values, dim=1))
    assert torch.equal(found["block3/all_but_first"], torch.cat(values[1:], dim=1))
    read = {"block2/latent" if network is convolutions else "block2/gap": values[1]}
    assert all(torch.equal(found[kind], value) for kind, value in read.items())
    assert set(model.block_features(images, last=2)) - set(found) == {"block2/all"}
    assert torch.equal(model.block_features(images, last=2)["block2/all"], torch.cat(values[:2], dim=1))
    assert not any("/all" in kind for kind in model.block_features(images, last=1))


def test_maps_are_averaged_over_four_by_four_regions():
    maps = torch.randn(2, 3, 8, 8)
    right = torch.stack(
        [maps[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for i in range(4) for j in range(4)]
    )
    torch.testing.assert_close(latent(maps), right.permute(1, 2, 0).flatten(1))
    small = torch.randn(2, 3, 2, 5)
    assert latent(small).shape == (2, 3 * 2 * 4)
    vectors = torch.randn(2, 3)
    assert torch.equal(latent(vectors), vectors)


def test_what_classifiers_read_requires_no_gradient_and_needs_no_label():
    splits, model = Splits.of(Digits()), made()
    features = splits.read([splits.test], model.device, block_reader(model, [1, 2, 3]))
    assert {kind: values.shape[1] for kind, values in features.kinds.items()} == {
        "block1/gap": 20,
        "block2/gap": 16,
        "block3/gap": 12,
        "block3/all": 48,
        "block3/all_but_first": 28,
    }
    assert not any(values.requires_grad for values in features.kinds.values())


def test_untrained_cells_are_those_that_a_run_with_the_seed_begins_with(tmp_path):
    start, trained = made(), made()
    assert_equal_weights(start, trained)
    train(trained, tmp_path)
    for name, before in start.named_parameters():
        assert not torch.equal(before, trained.get_parameter(name)), name
    assert not [*start.named_buffers()]


# -- what it costs ------------------------------------------------------------------------------------


def test_noise_costs_one_more_pass_forward_of_blocks_that_learn():
    passes = made(cell=DenoisingCell).plan().forward_passes
    assert (passes, made().plan().forward_passes) == ([2.0] * 3, [1.0] * 3)
    assert made(cell=DenoisingCell, frozen_blocks=1).plan().forward_passes == [1.0, 2.0, 2.0]
    assert made(cell=DenoisingCell, epochs_per_block=1).plan().forward_passes == pytest.approx([4 / 3, 1.0, 2 / 3])


@networks
@cells
def test_the_yardstick_is_one_cell_of_the_whole_network(cell, network):
    model = made(network, cell=cell)
    whole = end_to_end(model)
    assert (whole.num_blocks, type(whole.cell(0))) == (1, cell)
    assert whole.cell(0)(whole.blocks[0](ready().images)) is not None
    assert len([*end_to_end(model, 2).blocks[0].children()]) == 4  # three layers and the normalisation
    cost = network_cost(model, 8)
    assert len(cost.nodes) == 3
    assert cost.parameters == sum(p.numel() for p in model.parameters())


def test_maps_that_a_decoder_cannot_rebuild_are_refused():
    def odd(image_shape, num_classes):
        layers = torch.nn.Conv2d(1, 4, 2), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.ReLU()
        return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10))

    with pytest.raises(NetworkError, match="No transposed convolution makes maps of 8×8 from 7×7"):
        made(odd, num_blocks=2)


def test_bench_measures_it_although_its_blocks_have_more_parts_than_the_whole(tmp_path, capsys):
    main(["bench", "--config=unsupervised_forward_forward/digits", "--steps=2", "--repetitions=1"])
    assert "this method" in capsys.readouterr().out
