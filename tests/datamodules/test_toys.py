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
def test_points_follow_from_the_seed_and_no_two_splits_or_seeds_share_any(task):
    np.random.seed(1)
    points, labels = drawn(task(seed=3))
    np.random.seed(2)
    again, their_labels = drawn(task(seed=3))
    assert np.array_equal(points, again)
    assert np.array_equal(labels, their_labels)
    test, test_labels = drawn(task(seed=3), train=False)
    assert (len(points), len(test)) == (500, 2000)
    for others in (test, drawn(task(seed=4))[0]):
        assert set(map(tuple, points)).isdisjoint(map(tuple, others))
    assert set(test_labels) == {0, 1}
    assert 0.45 < test_labels.mean() < 0.55


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
def test_a_task_has_the_face_of_every_data_set_and_points_as_they_are(task, ready):
    module = ready(task(batch_size=64))
    assert module.name == task.__name__
    assert len(module.mean) == len(module.std) == module.image_shape[0]
    assert len(module.training_images) == 400
    assert sum(len(batch.labels) for batch in module.val_dataloader()) == 100
    batch = next(iter(module.train_dataloader()))
    seen = module.on_after_batch_transfer(batch, 0)
    assert seen.images.shape == (64, *module.image_shape)
    assert seen.images.dtype == torch.float32
    assert seen.labels.dtype == torch.int64
    assert torch.equal(seen.images[:, :, 0, 0], batch.images[:, 0, 0])


def test_too_few_points_are_refused():
    with pytest.raises(DataError, match="at least 2 points per split, not 1"):
        Rings(test_points=1)
