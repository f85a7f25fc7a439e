"""Views in the data modules: which pairs training gets, when, and what is refused."""

import numpy as np
import pytest
import torch
from fake_data import write_data_set
from lightly.transforms import DINOTransform, SimCLRTransform
from PIL import Image

from datamodules.augment import Augment, normalise
from datamodules.base import ImageDataModule
from datamodules.files import DataError
from datamodules.folders import ImageNet
from datamodules.images import MemoryImages
from datamodules.views.batched import translate
from datamodules.views.colour import Blur, Gray, Solarize
from datamodules.views.pairs import DevicePairs, PairedImages
from datamodules.views.transforms import BarlowTwinsViews, ShiftedViews, SimCLRViews, VICRegViews, Views
from experiments.measure.workbench import RandomImages

TRAIN, TEST = 93, 30


class Noise(ImageDataModule):
    """Noise in memory."""

    num_classes = 3
    image_shape = (3, 8, 8)
    mean, std = (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)

    def load(self, train):
        count = TRAIN if train else TEST
        generator = torch.Generator().manual_seed(int(train))
        images = torch.randint(256, (count, 8, 8, 3), dtype=torch.uint8, generator=generator)
        return MemoryImages(images, torch.arange(count) % 3)


def full_colour(side):
    """All that a view can have."""
    return BarlowTwinsViews(side, blur=(0.5, 0.5), solarize=(0.5, 0.5))


def flips_only(side):
    """Nothing random but the flip: the smallest crop is the whole image."""
    return SimCLRViews(side, min_scale=1.0, strength=0.0, blur=0.0, gray=0.0)


WAYS = pytest.mark.parametrize("batched", [True, False], ids=["batched", "per sample"])


def module(ready, batched=True, transform=full_colour, step=0, limit=1.0, levels=(1.0,), **options):
    options = {"batch_size": 10, **options}
    return ready(Noise(views=Views(transform, batched, levels), **options), step=step, limit=limit)


def epoch(data):
    """What the training steps of the epoch that begins get."""
    batches = []
    for batch in data.train_dataloader():
        batches.append(data.on_after_batch_transfer(batch, 0))
        data.trainer.global_step += 1
    return batches


def same(first, second):
    def views(batches):
        return torch.stack([torch.stack([view for pair in batch.views for view in pair[1:]]) for batch in batches])

    return torch.equal(views(first), views(second))


# What training gets


@pytest.mark.parametrize(("batched", "levels"), [(True, (0.25, 1.0)), (False, (1.0,))], ids=["batched", "per sample"])
def test_training_gets_pairs_in_channels_last_memory(ready, batched, levels):
    for batch in epoch(module(ready, batched, levels=levels)):
        assert tuple(pair.strength for pair in batch.views) == levels
        assert batch.images is batch.views[-1].a
        assert batch.labels.shape == (10,)
        for pair in batch.views:
            for images in (pair.a, pair.b):
                assert images.shape == (10, 3, 8, 8)
                assert images.dtype == torch.float32
                assert images.is_contiguous(memory_format=torch.channels_last)
            assert not torch.equal(pair.a, pair.b)


@WAYS
def test_views_show_the_image_of_their_label_normalised_as_ever(ready, batched):
    data = module(ready, batched, flips_only)
    everything = data.load(train=True)
    known = normalise(everything.__getitems__(torch.arange(TRAIN)).images, data.mean, data.std)
    seen = []
    for batch in epoch(data):
        for images in (batch.views[0].a, batch.views[0].b):
            either = torch.stack([(images.unsqueeze(1) - k).abs().flatten(2).amax(2) for k in (known, known.flip(3))])
            distance, which = either.amin(0).min(1)
            assert distance.max() < 2e-4  # a whole crop is looked up between pixels, to rounding
            assert torch.equal(everything.labels[which], batch.labels)
        seen += which.tolist()
    assert len(set(seen)) == len(seen)


def test_levels_share_what_was_drawn_and_the_last_is_the_ordinary_pair():
    images = Noise().load(train=True).__getitems__(torch.arange(20)).images
    torch.manual_seed(3)
    weak, strong = DevicePairs(Views(full_colour, levels=(0.25, 1)), 8, (0,), (1,))(images)
    torch.manual_seed(3)
    (ordinary,) = DevicePairs(Views(full_colour), 8, (0,), (1,))(images)
    assert (weak.strength, strong.strength) == (0.25, 1)
    assert torch.equal(strong.a, ordinary.a)
    assert torch.equal(strong.b, ordinary.b)
    assert not torch.equal(weak.a, strong.a)


def test_what_the_workers_cropped_is_not_cropped_again():
    crops = torch.randint(256, (20, 2, 8, 8, 3), dtype=torch.uint8)
    views = Views(lambda side: SimCLRViews(side, strength=0, blur=0, gray=0))
    ((_, *sides),) = DevicePairs(views, 8, (0.3,), (0.2,))(crops)
    for shown, sent in zip(sides, crops.unbind(1), strict=True):
        assert torch.allclose(shown, (sent.permute(0, 3, 1, 2) / 255 - 0.3) / 0.2, atol=1e-5)


def test_the_two_sides_have_their_own_recipe():
    images = torch.full((400, 8, 8, 3), 200, dtype=torch.uint8)
    images[:, :, :, 0] = 20
    pairs = DevicePairs(Views(lambda side: BarlowTwinsViews(side, strength=0, gray=0, blur=(0, 0))), 8, (0,), (1,))
    ((_, a, b),) = pairs(images)
    dark_green = (b[:, 1] < 0.5).flatten(1).all(1)  # 255 − 200
    assert (a[:, 1] > 0.5).all()
    assert abs(dark_green.float().mean() - 0.2) < 5 * 0.02


def test_evaluation_is_as_without_views(ready):
    data, plain = module(ready), ready(Noise(batch_size=10))
    data.trainer.training = plain.trainer.training = False
    for with_views, without in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        got = data.on_after_batch_transfer(with_views, 0)
        assert got.views == ()
        assert torch.equal(got.images, plain.on_after_batch_transfer(without, 0).images)


def test_views_win_over_augmentation(ready):
    assert same(epoch(module(ready, augment=Augment(pad=2, flip=True))), epoch(module(ready)))


# Which batches


@WAYS
@pytest.mark.parametrize(("batch_size", "batches"), [(10, 8), (83, 1), (41, 2)])
def test_a_last_smaller_batch_is_left_out(ready, batched, batch_size, batches):
    data = module(ready, batched, flips_only, batch_size=batch_size)
    assert len(data.train_dataloader()) == batches
    assert [len(batch.labels) for batch in data.train_dataloader()] == [batch_size] * batches
    assert len(ready(Noise(batch_size=10)).train_dataloader()) == 9  # without views it is kept


@WAYS
def test_a_resumed_run_meets_the_same_views(ready, batched):
    data = module(ready, batched, limit=5)
    first, second = epoch(data), epoch(data)
    assert len(first) == len(second) == 5
    assert not same(first, second)
    assert not same(first, epoch(module(ready, batched, limit=5, seed=1)))
    for step in (3, 7):
        torch.rand(7)
        resumed = epoch(module(ready, batched, limit=5, step=step))
        assert same(resumed, (first + second)[step : step // 5 * 5 + 5])


def test_workers_make_the_same_views_as_none_also_resumed(ready):
    alone, helped = (module(ready, False, num_workers=workers, step=11) for workers in (0, 2))
    assert same(epoch(alone), epoch(helped))
    assert helped.train_dataloader().persistent_workers
    assert helped.val_dataloader().persistent_workers


def test_loading_views_leaves_the_generators_as_they_were(ready):
    data = module(ready, batched=False)
    loader = iter(data.train_dataloader())
    state = torch.get_rng_state()
    next(loader)
    assert torch.equal(torch.get_rng_state(), state)


# Through a trainer


@WAYS
def test_a_trainer_hands_the_pairs_to_the_training_step(watch, ready, batched):
    watcher, data = watch(Noise(batch_size=10, views=Views(full_colour, batched))), module(ready, batched)
    for trained in watcher.trained:
        assert same(trained, epoch(data))
    assert all(batch.views == () for batch in watcher.validated)


@WAYS
def test_the_bench_makes_the_same_kind_of_batches(batched):
    images = RandomImages(Noise(batch_size=10, views=Views(full_colour, batched)), batches=3)
    batches = [images.on_after_batch_transfer(batch, 0) for batch in images.train_dataloader()]
    assert [batch.views[0].b.shape for batch in batches] == [(10, 3, 8, 8)] * 3


# Images read from disk


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """Makes the data module of a tiny ImageNet."""
    root = str(write_data_set("ImageNet", tmp_path, monkeypatch))

    def make(views, workers=0):
        return ImageNet(root, 16, batch_size=8, validation=0.2, num_workers=workers, views=views)

    return make


@WAYS
def test_streamed_images_are_cropped_from_their_full_size(ready, imagenet, batched):
    views = Views(full_colour, batched)
    data, helped = ready(imagenet(views)), ready(imagenet(views, workers=2))
    sent = next(iter(data.train_dataloader())).images
    assert (sent.shape, sent.dtype) == ((8, 2, 16, 16, 3), torch.uint8)
    assert data.training_images.picture(0).size == (64, 48)
    first = epoch(data)
    assert {batch.views[0].a.shape for batch in first} == {(8, 3, 16, 16)}
    assert same(first, epoch(helped))
    assert next(iter(data.val_dataloader())).images.shape[1:] == (16, 16, 3)


def test_streamed_images_have_views_of_one_level(ready, imagenet):
    with pytest.raises(DataError, match=r"images of ImageNet are read from disk, .*: give views one level, 1\."):
        ready(imagenet(Views(full_colour, levels=(0.5, 1))))


# What is refused, and recipes


RISE = r"views.levels must rise from 0 or more to 1, unlike \("


@pytest.mark.parametrize(
    ("levels", "batched", "complaint"),
    [
        *((levels, True, RISE) for levels in [(), (0.5,), (1.0, 0.5), (0.5, 0.5, 1), (-0.1, 1), (0.5, 1.5)]),
        ((0.5, 1), False, "several levels are rendered in batches only: set views.batched to true"),
    ],
)
def test_refuses_levels_that_cannot_be(levels, batched, complaint):
    with pytest.raises(DataError, match=complaint):
        Views(full_colour, batched, levels)


def rotating(side):
    return SimCLRTransform(side, rr_prob=0.5, normalize=None)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batch_size": 84}, r"Noise has 83 training images, fewer than one batch of 84; .*lower batch_size"),
        ({"transform": SimCLRTransform}, "SimCLRTransform normalises its views, .* normalize: null"),
        ({"transform": lambda side: DINOTransform()}, "Views come in pairs, but DINOTransform makes 8"),
        ({"transform": rotating}, "RandomRotate has no batched form: set views.batched to false"),
    ],
)
def test_says_before_training_what_views_cannot_be_made_of(ready, options, complaint):
    with pytest.raises(DataError, match=complaint):
        module(ready, **options)


def test_images_one_by_one_may_have_operations_without_a_batched_form(ready):
    assert len(epoch(module(ready, False, rotating))) == 8


def test_views_made_while_loading_are_rounded_to_the_nearest_level():
    images = PairedImages(MemoryImages(torch.zeros(1, 2, 2, 1).byte(), [0]), [lambda _: torch.full((1, 2, 2), 0.026)])
    assert images.__getitems__([0]).images.unique().tolist() == [7]  # of 6.63


@pytest.mark.parametrize(
    ("recipe", "jitter", "blurs", "solarizes"),
    [
        (SimCLRViews, (0.8, 0.8, 0.8, 0.2), (0.5, 0.5), (0, 0)),
        (BarlowTwinsViews, (0.4, 0.4, 0.2, 0.1), (1.0, 0.1), (0, 0.2)),
        (VICRegViews, (0.4, 0.4, 0.2, 0.1), (0.5, 0.5), (0.1, 0.1)),
    ],
)
def test_recipes_are_those_of_the_papers(recipe, jitter, blurs, solarizes):
    def named(**options):
        for transform in recipe(32, **options).transforms:
            yield {type(operation).__name__: operation for operation in translate(transform)}

    def widths(operation):
        ranges = (operation.brightness, operation.contrast, operation.saturation, operation.hue)
        return [(high - low) / 2 for low, high in ranges]

    for operations, blur, solarize in zip(named(), blurs, solarizes, strict=True):
        assert widths(operations["Jitter"]) == pytest.approx(jitter)
        assert operations["Jitter"].probability == 0.8
        assert operations["Blur"] == Blur(blur, (0.1, 2))
        assert operations.get("Solarize", Solarize(0)) == Solarize(solarize)
        assert (operations["Crop"].scale, operations["Crop"].flip) == ((0.08, 1.0), 0.5)
        assert operations["Gray"] == Gray(0.2)
    for operations in named(strength=0.5, gray=0.1, flip=0.3, min_scale=0.6):
        assert widths(operations["Jitter"]) == pytest.approx([width / 2 for width in jitter])
        assert operations["Gray"] == Gray(0.1)
        assert (operations["Crop"].scale, operations["Crop"].flip) == ((0.6, 1.0), 0.3)


def test_shifted_views_show_the_image_up_to_so_many_pixels_away():
    torch.manual_seed(0)
    image = np.zeros((9, 9), np.uint8)
    image[3:6, 3:6] = np.arange(1, 10).reshape(3, 3) * 25
    views = ShiftedViews(9, pixels=2)
    found = set()
    for _ in range(300):
        a, b = views(Image.fromarray(image))
        for view in (a, b):
            rows, columns = (view[0] > 0).nonzero(as_tuple=True)
            top, left = int(rows.min()), int(columns.min())
            shown = (view[0, top : top + 3, left : left + 3] * 255).round()
            assert torch.equal(shown, torch.from_numpy(image[3:6, 3:6]).float())
            found.add((top - 3, left - 3))
    assert found == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}


def test_both_views_are_shifted_apart():
    torch.manual_seed(0)
    image = Image.fromarray(np.eye(9, dtype=np.uint8) * 255)
    pairs = [ShiftedViews(9)(image) for _ in range(20)]
    assert sum(not torch.equal(a, b) for a, b in pairs) > 10
