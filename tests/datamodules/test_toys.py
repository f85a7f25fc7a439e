"""The toy tasks: their rules, their seeds, their face."""

import numpy as np
import pytest
import torch

from datamodules.files import DataError
from datamodules.toys import Checkerboard, NoisyProducts, Rings, Spirals

TASKS = [Checkerboard, Rings, Spirals, NoisyProducts]


def drawn(module, train=True):
    split = module.load(train)
    batch = split.__getitems__(torch.arange(len(split)))
    return batch.images[:, 0, 0].numpy(), batch.labels.numpy()


@pytest.mark.parametrize("task", TASKS)
def test_points_follow_from_the_seed_and_nothing_else(task):
    np.random.seed(1)
    torch.manual_seed(1)
    points, labels = drawn(task(seed=3))
    np.random.seed(2)
    again, their_labels = drawn(task(seed=3))
    other, _ = drawn(task(seed=4))
    assert np.array_equal(points, again)
    assert np.array_equal(labels, their_labels)
    assert not np.isin(points[:, 0], other[:, 0]).any()


@pytest.mark.parametrize("task", TASKS)
def test_training_and_test_split_share_no_point(task):
    train, test = drawn(task())[0], drawn(task(), train=False)[0]
    assert (len(train), len(test)) == (500, 2000)
    assert not np.isin(train[:, 0], test[:, 0]).any()


@pytest.mark.parametrize("task", TASKS)
def test_both_classes_are_common(task):
    labels = drawn(task(), train=False)[1]
    assert set(labels) == {0, 1}
    assert 0.45 < labels.mean() < 0.55


def test_neighbouring_fields_of_the_checkerboard_differ():
    points, labels = drawn(Checkerboard(), train=False)
    assert np.abs(points).max() <= 2
    field = {(x, y): (x + y) % 2 for x in range(-2, 2) for y in range(-2, 2)}
    assert [field[tuple(f)] for f in np.floor(points).astype(int)] == labels.tolist()
    assert len({tuple(f) for f in np.floor(points)}) == 16


def test_rings_alternate():
    points, labels = drawn(Rings(), train=False)
    radius = np.hypot(*points.T)
    ring = np.rint(3 * radius).clip(1, 6).astype(int) - 1
    noise = radius - (ring + 1) / 3
    assert (ring % 2 == labels).mean() > 0.998  # further than half a gap: 3.3 standard deviations
    assert np.bincount(ring, minlength=6).min() > 250
    assert noise.std() == pytest.approx(0.05, rel=0.1)


def test_every_point_of_the_spirals_is_nearer_to_its_own_arm():
    points, labels = drawn(Spirals(), train=False)
    x, y = points.T * np.where(labels == 0, 1, -1)  # the second arm is the first turned by half a circle
    radius = np.hypot(x, y)
    off = np.angle(np.exp(1j * (np.arctan2(y, x) - 1.75 * np.pi * radius)))[radius > 0.5]
    assert radius.max() == pytest.approx(2, abs=0.2)
    assert np.abs(off).max() < np.pi / 2
    assert off.std() == pytest.approx(1.75 * np.pi * 0.05, rel=0.15)  # the noise along the radius turns most


def test_a_tenth_of_the_noisy_labels_is_flipped():
    for train in (True, False):
        points, labels = drawn(NoisyProducts(points=4000, test_points=4000), train)
        assert points.shape == (4000, 20)
        assert points.std() == pytest.approx(1, abs=0.02)
        assert ((points[:, 0] * points[:, 1] > 0) != labels).mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_the_face_of_every_data_set(task, ready):
    module = ready(task(batch_size=64))
    assert len(module.mean) == len(module.std) == module.image_shape[0]
    assert len(module.training_images) == 400
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert batch.images.shape == (64, *module.image_shape)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    assert sum(len(b.labels) for b in module.val_dataloader()) == 100
    assert module.name == task.__name__


def test_points_are_not_normalised(ready):
    module = ready(Checkerboard(batch_size=100), training=False)
    batch = next(iter(module.val_dataloader()))
    seen = module.on_after_batch_transfer(batch, 0).images
    assert torch.equal(seen[:, :, 0, 0], batch.images[:, 0, 0])


def test_too_few_points_are_refused():
    with pytest.raises(DataError, match="at least 2 points per split, not 1"):
        Rings(test_points=1)
