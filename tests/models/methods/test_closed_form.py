"""ClosedFormMLP: what it solves for, in a Trainer and without one."""

import lightning.pytorch as L
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional as F

from datamodules.digits import Digits
from datamodules.toys import Checkerboard, Rings
from losses.errors import UsageError
from models.methods.closed_form import ClosedFormMLP
from models.parts.ridge import ForwardProjection, Platonic, RandomFeatures, class_codes

SHAPE = (2, 1, 1)
EVERY = pytest.mark.parametrize("targets", [RandomFeatures, ForwardProjection, Platonic])


def closed(widths=(20, 20), seed=0, **arguments):
    torch.manual_seed(seed)
    return ClosedFormMLP(SHAPE, 2, widths, **arguments)


def points(task=Checkerboard, **options):
    split = task(**options).load(train=True)
    batch = split.__getitems__(torch.arange(len(split)))
    return batch.images.permute(0, 3, 1, 2), batch.labels


def fit(model, images, labels, batch=None, order_seed=None):
    figures = {}
    for _ in range(model.num_blocks + 1):
        order = torch.arange(len(labels))
        if order_seed is not None:
            order_seed += 1
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(order_seed))
        for rows in order.split(batch or len(labels)):
            model.accumulate(images[rows], labels[rows])
        figures |= model.solve()
    return figures


def weights(model):
    return torch.cat([p.flatten() for p in model.parameters()])


def top1(model, images, labels):
    return float((model(images).argmax(dim=1) == labels).float().mean())


# -- what is solved ---------------------------------------------------------------------------------


def test_every_layer_solves_the_equations_of_the_features_before_it():
    images, labels = points()
    model = closed((20, 15), ridge=0.1)
    fit(model, images, labels)
    h = images.flatten(1).double()
    goals = [*(targets for targets in model.targets[:-1]), None]
    for block, readout, targets in zip([*model.blocks, None], model.readouts, goals, strict=True):
        extended = torch.cat([h, torch.ones(len(h), 1, dtype=torch.float64)], dim=1)
        wanted = [(readout, class_codes(labels, 2))]
        wanted += [(block[0], targets(extended, labels))] if block else []
        for linear, z in wanted:
            w = torch.cat([linear.weight, linear.bias[:, None]], dim=1).T
            torch.testing.assert_close(
                extended.T @ (extended @ w - z) + 0.1 * w, torch.zeros_like(w), atol=1e-8, rtol=0
            )
        h = F.relu(block[0](h)) if block else h
    torch.testing.assert_close(model(images), model.readouts[-1](h))


def test_without_hidden_layers_it_is_linear_ridge_regression():
    images, labels = points()
    model = closed((), ridge=0.3)
    fit(model, images, labels)
    x = torch.cat([images.flatten(1).double(), torch.ones(len(labels), 1)], dim=1)
    theirs = Ridge(alpha=0.3, fit_intercept=False).fit(x, class_codes(labels, 2)).coef_
    torch.testing.assert_close(model.readouts[0].weight, torch.from_numpy(theirs[:, :2]))
    torch.testing.assert_close(model.readouts[0].bias, torch.from_numpy(theirs[:, 2]))


@EVERY
def test_batches_and_their_order_do_not_matter(targets):
    images, labels = points()
    whole, shuffled = closed(targets=targets), closed(targets=targets)
    fit(whole, images, labels)
    fit(shuffled, images, labels, batch=32, order_seed=0)
    assert float((weights(shuffled) - weights(whole)).norm() / weights(whole).norm()) < 1e-6


@EVERY
def test_as_many_units_as_points_and_no_ridge_know_all_training_points(targets):
    images, labels = points(points=100)
    model = closed((150,), targets=targets, ridge=1e-10)
    fit(model, images, labels)
    assert top1(model, images, labels) == 1


def test_random_features_stay_as_they_were_drawn():
    images, labels = points()
    model = closed(targets=RandomFeatures)
    before = [block[0].weight.clone() for block in model.blocks]
    figures = fit(model, images, labels)
    assert all(torch.equal(block[0].weight, w) for block, w in zip(model.blocks, before, strict=True))
    assert not any(name.endswith("target_r2") for name in figures)


def test_a_random_layer_has_hes_standard_deviation_biases_included():
    torch.manual_seed(0)
    model = ClosedFormMLP((399, 1, 1), 2, [1000])
    assert float(model.blocks[0][0].weight.std()) == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert float(model.blocks[0][0].bias.std()) == pytest.approx((2 / 400) ** 0.5, rel=0.1)


def test_a_small_ridge_overfits_and_more_units_know_more():
    images, labels = points()
    unseen, their_labels = points(seed=1)

    def reached(widths, ridge):
        model = closed(widths, ridge=ridge)
        fit(model, images, labels)
        return top1(model, images, labels), top1(model, unseen, their_labels)

    narrow, wide, overfitted = reached([20], 1e-2), reached([300], 1e-2), reached([300], 1e-7)
    assert wide[0] > narrow[0] + 0.1
    assert wide[1] > narrow[1] + 0.1
    assert overfitted[0] >= wide[0]
    assert overfitted[1] < wide[1] - 0.02


def test_what_is_logged_of_a_layer():
    images, labels = points()
    figures = fit(closed((30, 20)), images, labels)
    per_features = ("condition", "effective_rank", "readout_r2", "seconds")
    expected = {f"{name}/{figure}" for name in ("input", "block1", "block2") for figure in per_features}
    assert set(figures) == expected | {"block1/target_r2", "block2/target_r2"}
    assert 1 < figures["input/effective_rank"] <= 2 < figures["block1/effective_rank"] <= 30
    assert all(0 <= figures[name] <= 1 for name in figures if name.endswith("r2"))
    assert figures["block1/condition"] > figures["input/condition"] > 1


def test_each_depth_predicts_as_soon_as_it_is_solved():
    images, labels = points()
    model = closed((30, 20))
    assert list(model.block_logits(images)) == ["input"]
    assert not model(images).any()
    for names in (["input"], ["input", "block1"], ["input", "block1", "block2"]):
        model.accumulate(images, labels)
        model.solve()
        assert list(model.block_logits(images)) == names
        assert torch.equal(model(images), model.block_logits(images)[names[-1]])


def test_probes_read_the_hidden_layers():
    images, labels = points()
    model = closed((30, 20))
    fit(model, images, labels)
    features = model.block_features(images)
    assert {name: h.shape[1] for name, h in features.items()} == {"block1/gap": 30, "block2/gap": 20}
    assert list(model.block_features(images, last=1)) == ["block1/gap"]
    torch.testing.assert_close(model.readouts[-1](features["block2/gap"]), model(images))


# -- in a Trainer -------------------------------------------------------------------------------------


def trainer(tmp_path, epochs=3, **options):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, default_root_dir=tmp_path, **(quiet | options))


@EVERY
def test_a_trainer_fits_what_the_equations_say(targets, tmp_path):
    model, by_hand = closed(targets=targets), closed(targets=targets)
    data = Checkerboard()
    run = trainer(tmp_path)
    run.fit(model, datamodule=data)
    split = data.training_images
    batch = split.__getitems__(torch.arange(len(split)))
    fit(by_hand, data.normalised(batch.images), batch.labels)
    assert float((weights(model) - weights(by_hand)).norm() / weights(by_hand).norm()) < 1e-6
    assert run.global_step == 3 * 13
    assert run.callback_metrics["val/top1"] == run.callback_metrics["val/block2/top1"]


class StopAfter(L.Callback):
    """Saves after a number of batches and ends the run there, as a kill would."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [5, 13, 20, 32])
def test_a_resumed_run_ends_with_the_same_weights(step, tmp_path):
    whole, cut, resumed = closed(), closed(), closed(seed=9)
    trainer(tmp_path).fit(whole, datamodule=Checkerboard())
    with pytest.raises(SystemExit):
        trainer(tmp_path, callbacks=[StopAfter(step, tmp_path / "cut.ckpt")]).fit(cut, datamodule=Checkerboard())
    saved = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    assert ("normal_equations" in saved) == (step % 13 != 0)
    run = trainer(tmp_path)
    run.fit(resumed, datamodule=Checkerboard(), ckpt_path=tmp_path / "cut.ckpt")
    assert run.global_step == 39
    assert torch.equal(weights(resumed), weights(whole))


def test_images_are_flattened(tmp_path):
    torch.manual_seed(0)
    model = ClosedFormMLP((1, 8, 8), 10, [300], targets=Platonic, ridge=1.0)
    run = trainer(tmp_path, 2)
    run.fit(model, datamodule=Digits())
    assert run.callback_metrics["val/top1"] > 0.9


# -- mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [0, -1e-3, float("nan")])
def test_a_ridge_that_is_not_positive_is_refused(ridge):
    with pytest.raises(UsageError, match=rf"ridge is the λ .* above 0, not {ridge:g}"):
        closed(ridge=ridge)


def test_a_ridge_that_float64_cannot_tell_from_none_is_refused():
    images, labels = points(Rings, points=50)
    model = closed((200,), ridge=1e-300)
    with pytest.raises(UsageError, match=r"ridge of 1e-300 is too small: .* block1 is singular"):
        fit(model, 1e6 * images, labels)


def test_a_layer_without_units_is_refused():
    with pytest.raises(UsageError, match=r"at least 1 each, not \[5, 0\]"):
        closed((5, 0))


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_another_number_of_epochs_than_layers_is_refused(epochs, tmp_path):
    with pytest.raises(UsageError, match=rf"set trainer.max_epochs to 3, .* not {epochs}"):
        trainer(tmp_path, epochs).fit(closed(), datamodule=Checkerboard())


def test_a_limit_of_steps_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no max_steps"):
        trainer(tmp_path, max_steps=20).fit(closed(), datamodule=Checkerboard())
