"""ClosedFormMLP: what it solves for, in a Trainer and without one."""

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch.nn import functional as F
from training import train

from datamodules.toys import Checkerboard
from losses.errors import UsageError
from models.methods.closed_form import ClosedFormMLP
from models.parts.ridge import ForwardProjection, Platonic, RandomFeatures, class_codes


def closed(widths=(20, 20), seed=0, **arguments):
    torch.manual_seed(seed)
    return ClosedFormMLP((2, 1, 1), 2, widths, **arguments)


@pytest.fixture(scope="module")
def points():
    """All training images of a toy, normalised, and their labels."""
    data = Checkerboard()
    data.setup("fit")
    split = data.training_images
    batch = split.__getitems__(torch.arange(len(split)))
    return data.normalised(batch.images), batch.labels


def fit(model, images, labels):
    figures = {}
    for _ in range(model.num_blocks + 1):
        model.accumulate(images, labels)
        figures |= model.solve()
    return figures


def weights(model):
    return torch.cat([p.flatten() for p in model.parameters()])


# -- what is solved ---------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(20, 15), ()], ids=["hidden", "linear"])
def test_every_layer_solves_the_equations_of_the_features_before_it(widths, points):
    images, labels = points
    model = closed(widths, ridge=0.1)
    fit(model, images, labels)
    h = images.flatten(1).double()
    for k, readout in enumerate(model.readouts):
        extended = torch.cat([h, torch.ones(len(h), 1, dtype=torch.float64)], dim=1)
        wanted = [(readout, class_codes(labels, 2))]
        if k < model.num_blocks:
            layer = model.blocks[k][0]
            wanted.append((layer, model.targets[k](extended, labels)))
            h = F.relu(layer(h))
        for linear, z in wanted:
            w = torch.cat([linear.weight, linear.bias[:, None]], dim=1).T
            residual = extended.T @ (extended @ w - z) + 0.1 * w
            torch.testing.assert_close(residual, torch.zeros_like(w), atol=1e-8, rtol=0)
    torch.testing.assert_close(model(images), model.readouts[-1](h))


def test_random_features_stay_as_they_were_drawn(points):
    model = closed(targets=RandomFeatures)
    before = [block[0].weight.clone() for block in model.blocks]
    figures = fit(model, *points)
    assert all(torch.equal(block[0].weight, w) for block, w in zip(model.blocks, before, strict=True))
    assert not any(name.endswith("target_r2") for name in figures)


def test_a_random_layer_has_hes_standard_deviation_biases_included():
    torch.manual_seed(0)
    model = ClosedFormMLP((3, 7, 19), 2, [1000])
    assert float(model.blocks[0][0].weight.std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert float(model.blocks[0][0].bias.std()) == pytest.approx((2 / 400) ** 0.5, rel=0.1)
    assert model(torch.rand(4, 3, 7, 19)).shape == (4, 2)


def test_what_is_logged_of_a_layer(points):
    figures = fit(closed((30, 20)), *points)
    per_features = ("condition", "effective_rank", "readout_r2", "seconds")
    expected = {f"{name}/{figure}" for name in ("input", "block1", "block2") for figure in per_features}
    assert set(figures) == expected | {"block1/target_r2", "block2/target_r2"}
    assert 1 < figures["input/effective_rank"] <= 2 < figures["block1/effective_rank"] <= 30
    assert all(0 <= figures[name] <= 1 for name in figures if name.endswith("r2"))
    assert figures["block1/condition"] > figures["input/condition"] > 1


def test_each_depth_predicts_as_soon_as_it_is_solved_and_probes_read_the_hidden_layers(points):
    images, labels = points
    model = closed((30, 20))
    assert list(model.block_logits(images)) == ["input"]
    assert not model(images).any()
    for names in (["input"], ["input", "block1"], ["input", "block1", "block2"]):
        model.accumulate(images, labels)
        model.solve()
        assert list(model.block_logits(images)) == names
        assert torch.equal(model(images), model.block_logits(images)[names[-1]])
    features = model.block_features(images)
    assert {name: h.shape[1] for name, h in features.items()} == {"block1/gap": 30, "block2/gap": 20}
    assert list(model.block_features(images, last=1)) == ["block1/gap"]
    assert torch.equal(model.readouts[-1](features["block2/gap"]), model(images))


# -- in a Trainer -------------------------------------------------------------------------------------


def solved(model, tmp_path, **options):
    return train(model, tmp_path, Checkerboard(), **({"max_epochs": 3, "limit_train_batches": 1.0} | options))


@pytest.mark.parametrize("targets", [RandomFeatures, ForwardProjection, Platonic])
def test_batches_in_any_order_give_what_all_points_at_once_do(targets, points, tmp_path):
    model, by_hand = closed(targets=targets), closed(targets=targets)
    run = solved(model, tmp_path)
    fit(by_hand, *points)
    assert float((weights(model) - weights(by_hand)).norm() / weights(by_hand).norm()) < 1e-6
    assert run.global_step == 3 * 13
    assert run.callback_metrics["val/top1"] == run.callback_metrics["val/block2/top1"]


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    def save(trainer, *_):
        trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    solved(whole := closed(), tmp_path, callbacks=[LambdaCallback(on_train_batch_end=save)])
    for step in (5, 13, 32):  # within the first layer, after it, within the read-out
        checkpoint = tmp_path / f"{step}.ckpt"
        assert ("normal_equations" in torch.load(checkpoint, weights_only=True)) == (step % 13 != 0)
        assert solved(resumed := closed(seed=9), tmp_path, resume=checkpoint).global_step == 39
        assert torch.equal(weights(resumed), weights(whole))


# -- mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": 0}, "ridge is the λ .* above 0, not 0"),
        ({"ridge": float("nan")}, "above 0, not nan"),
        ({"widths": (5, 0)}, r"at least 1 each, not \[5, 0\]"),
    ],
)
def test_what_cannot_be_solved_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        closed(**options)


def test_a_ridge_that_float64_cannot_tell_from_none_is_refused(points):
    images, labels = points
    with pytest.raises(UsageError, match=r"ridge of 1e-300 is too small: .* block1 is singular"):
        fit(closed((200,), ridge=1e-300), 1e6 * images[:50], labels[:50])


@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_epochs": 4}, {"max_steps": 20}])
def test_another_number_of_epochs_than_layers_is_refused(limits, tmp_path):
    with pytest.raises(UsageError, match=r"set trainer.max_epochs to 3, .* and no max_steps"):
        solved(closed(), tmp_path, **limits)
