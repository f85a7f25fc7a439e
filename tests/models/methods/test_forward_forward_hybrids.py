"""Forward-Forward with hybrids: what the blocks see, no labels in them, isolation, what is learned."""

from functools import partial

import torch
from torch.nn import functional as F
from torch.optim import SGD, Adam
from training import Batches, assert_equal_weights, assert_isolated, evaluated, smooth, train

from datamodules.batch import Batch
from losses.goodness import hybrid_masks, unit_length
from models.methods import forward_forward_hybrids
from models.methods.forward_forward_hybrids import ForwardForwardHybrids
from models.networks.mlp import MLP

SHAPE, CLASSES = (3, 6, 6), 4
sgd = partial(SGD, lr=0.05, momentum=0.9, dampening=0.9)


layers = partial(MLP, hidden=[15, 12, 11], batch_norm=False)


def made(network=layers, **options):
    torch.manual_seed(0)
    return ForwardForwardHybrids(network, SHAPE, CLASSES, **{"optimizer": sgd, **options})


def batches(count, shift=0):
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(7, *SHAPE, generator=generator) for _ in range(count)]
    labels = (torch.arange(7) + shift) % CLASSES
    return [Batch(one, labels, indices=torch.arange(7)) for one in images]


def test_a_negative_is_a_hybrid_of_an_image_and_another(monkeypatch):
    masks = []

    def kept(images, blurs):
        masks.append((hybrid_masks(images, blurs), blurs))
        return masks[0][0]

    monkeypatch.setattr(forward_forward_hybrids, "hybrid_masks", kept)
    model, (batch,) = made(blurs=3), batches(1)
    first, contrast = model.step_input(batch)
    ((mask, blurs),) = masks
    assert (first, blurs, made().blurs) == (0, 3, 8)
    torch.testing.assert_close(contrast.positive, unit_length(batch.images))
    for i, image in enumerate(batch.images):
        expected = mask[i] * image + (1 - mask[i]) * batch.images[i - 1]
        torch.testing.assert_close(contrast.negative[i], unit_length(expected[None])[0])


def test_blocks_are_isolated():
    assert_isolated(made(), batches(1)[0])


def test_maps_have_goodness_too():
    model = made(smooth)
    assert_isolated(model, batches(1)[0])
    assert model.block_features(batches(1)[0].images)["block3/gap"].shape == (7, 8)


def test_the_threshold_of_maps_counts_all_their_numbers():
    model, (batch,) = made(smooth, peer=0.0), batches(1)
    contrast = model.block_output(0, model.step_input(batch)[1])
    logits = [rows.square().sum((1, 2, 3)) - rows[0].numel() for rows in contrast[:2]]
    expected = (F.softplus(-logits[0]).mean() + F.softplus(logits[1]).mean()) / 2
    torch.testing.assert_close(model.local_loss(0, contrast, batch), expected)


def test_labels_reach_the_readout_alone(tmp_path):
    one = made()
    train(one, tmp_path, Batches(batches(4)))
    other = made()
    train(other, tmp_path, Batches(batches(4, shift=1)))
    assert_equal_weights(one.blocks, other.blocks)
    assert not torch.equal(one.heads[3].weight, other.heads[3].weight)
    assert not torch.equal(one.blocks[2].fc3[0].weight, made().blocks[2].fc3[0].weight)


def test_the_readout_reads_the_images_in_training_as_in_evaluation():
    model, (batch,) = made(), batches(1)
    losses = []
    model.heads[3].weight.data.normal_()
    model.update_block = lambda k, loss: losses.append(loss.detach())
    model.training_step(batch, 0)
    metrics = evaluated(model, batch)
    torch.testing.assert_close(losses[3], metrics["final/loss"].detach())
    assert {name.partition("/")[0] for name in metrics} == {"final", "top1"}


def test_blocks_learn_to_tell_images_from_hybrids(tmp_path):
    """Images of one colour each; their hybrids have two."""
    model = made(blurs=0, optimizer=partial(Adam, lr=0.01))
    colours = torch.eye(3).repeat(2, 1)[:, :, None, None].expand(6, *SHAPE)
    batch = Batch(colours, torch.zeros(6, dtype=torch.long), indices=torch.arange(6))
    train(model, tmp_path, Batches([batch] * 100), max_epochs=3, limit_train_batches=1.0, log_every_n_steps=1)
    for k in (1, 2, 3):
        assert model.latest[f"train/block{k}/separation"] > 0.9
        figures = [model.latest[f"train/block{k}/{name}"] for name in ("positive_goodness", "negative_goodness")]
        assert figures[0] > 1.5 * figures[1]
