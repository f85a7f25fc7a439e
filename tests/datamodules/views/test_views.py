"""Views in the data modules: which pairs training gets, when, and what is refused."""

import lightning.pytorch as L
import pytest
import torch
from fake_data import write_data_set
from jsonargparse import ArgumentParser
from lightly.transforms import DINOTransform, SimCLRTransform
from torch.utils.data import DataLoader

from datamodules.augment import Augment, normalise
from datamodules.base import ImageDataModule
from datamodules.batch import Batch, ViewPair
from datamodules.digits import Digits
from datamodules.files import DataError
from datamodules.folders import ImageNet
from datamodules.images import MemoryImages
from datamodules.views.pairs import BatchedPairs
from datamodules.views.transforms import BarlowTwinsViews, SimCLRViews, VICRegViews, Views
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
    return len(first) == len(second) and all(
        torch.equal(a.labels, b.labels)
        and all(
            torch.equal(p.a, q.a) and torch.equal(p.b, q.b) and p.strength == q.strength
            for p, q in zip(a.views, b.views, strict=True)
        )
        for a, b in zip(first, second, strict=True)
    )


# What training gets


@WAYS
def test_training_gets_normalised_pairs_in_channels_last_memory(ready, batched):
    data = module(ready, batched)
    for batch in epoch(data):
        (pair,) = batch.views
        assert isinstance(batch, Batch)
        assert isinstance(pair, ViewPair)
        assert pair.strength == 1.0
        assert batch.images is pair.a
        assert batch.labels.shape == (10,)
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
    weak, strong = BatchedPairs(Views(full_colour, levels=(0.25, 1)), 8, (0,), (1,))(images)
    torch.manual_seed(3)
    (ordinary,) = BatchedPairs(Views(full_colour), 8, (0,), (1,))(images)
    assert (weak.strength, strong.strength) == (0.25, 1)
    assert torch.equal(strong.a, ordinary.a)
    assert torch.equal(strong.b, ordinary.b)
    plain = images.permute(0, 3, 1, 2) / 255
    nearer = [min(float((pair.a - side).abs().mean()) for side in (plain, plain.flip(3))) for pair in (weak, strong)]
    assert nearer[0] < nearer[1]


def test_the_images_of_a_batch_are_the_strongest_first_views(ready):
    for batch in epoch(module(ready, levels=(0.25, 0.5, 1.0))):
        assert [pair.strength for pair in batch.views] == [0.25, 0.5, 1.0]
        assert batch.images is batch.views[-1].a


def test_the_two_sides_have_their_own_recipe():
    images = torch.full((400, 8, 8, 3), 200, dtype=torch.uint8)
    images[:, :, :, 0] = 20
    pairs = BatchedPairs(Views(lambda side: BarlowTwinsViews(side, strength=0, gray=0, blur=(0, 0))), 8, (0,), (1,))
    ((_, a, b),) = pairs(images)
    dark_green = (b[:, 1] < 0.5).flatten(1).all(1)  # 255 − 200
    assert (a[:, 1] > 0.5).all()
    assert abs(dark_green.float().mean() - 0.2) < 5 * 0.02


@WAYS
def test_grey_images_have_views_too(ready, batched):
    data = ready(Digits(views=Views(full_colour, batched), batch_size=16))
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch.views[0].a.shape == batch.views[0].b.shape == (16, 1, 8, 8)


@WAYS
def test_evaluation_is_as_without_views(ready, batched):
    options = {"batch_size": 10}
    data, plain = module(ready, batched), ready(Noise(**options))
    data.trainer.training = plain.trainer.training = False
    for with_views, without in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        got = data.on_after_batch_transfer(with_views, 0)
        assert got.views == ()
        assert torch.equal(got.images, plain.on_after_batch_transfer(without, 0).images)


def test_views_win_over_augmentation(ready):
    assert same(epoch(module(ready, augment=Augment(pad=2, flip=True))), epoch(module(ready)))


# Which batches


@WAYS
@pytest.mark.parametrize(("batch_size", "batches"), [(10, 8), (83, 1), (80, 1), (41, 2)])
def test_a_last_smaller_batch_is_left_out(ready, batched, batch_size, batches):
    data = module(ready, batched, flips_only, batch_size=batch_size)
    assert len(data.train_dataloader()) == batches
    assert [len(batch.labels) for batch in data.train_dataloader()] == [batch_size] * batches
    assert len(ready(Noise(batch_size=10)).train_dataloader()) == 9  # without views it is kept


@WAYS
@pytest.mark.parametrize(("limit", "length"), [(1.0, 8), (5, 5), (0.5, 4)])
def test_a_resumed_run_meets_the_same_views(ready, batched, limit, length):
    data = module(ready, batched, limit=limit)
    first, second = epoch(data), epoch(data)
    assert len(first) == len(second) == length
    assert not same(first, second)
    for step in (0, 3, length, length + 2):
        torch.rand(7)
        resumed = epoch(module(ready, batched, limit=limit, step=step))
        assert same(resumed, (first if step < length else second)[step % length :])


@WAYS
def test_views_differ_between_seeds(ready, batched):
    assert not same(epoch(module(ready, batched)), epoch(module(ready, batched, seed=1)))


def test_workers_make_the_same_views_as_none_also_resumed(ready):
    for step in (0, 11):
        alone, helped = (module(ready, False, num_workers=workers, step=step) for workers in (0, 2))
        assert same(epoch(alone), epoch(helped))


def test_loading_views_leaves_the_generators_as_they_were(ready):
    data = module(ready, batched=False)
    loader = iter(data.train_dataloader())
    state = torch.get_rng_state()
    next(loader)
    assert torch.equal(torch.get_rng_state(), state)


# Through a trainer


class Watcher(L.LightningModule):
    """Learns nothing; remembers its batches."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append(batch)
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def watch(tmp_path, data, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(
        default_root_dir=tmp_path, enable_checkpointing=False, num_sanity_val_steps=0, **quiet, **options
    )
    watcher = Watcher()
    trainer.fit(watcher, data)
    return watcher


@WAYS
def test_a_trainer_hands_the_pairs_to_the_training_step(tmp_path, ready, batched):
    watcher = watch(tmp_path, Noise(batch_size=10, views=Views(full_colour, batched)), max_epochs=2)
    assert len(watcher.trained) == 16
    assert all(batch.views == () for batch in watcher.validated)
    data = module(ready, batched)
    assert same(watcher.trained, epoch(data) + epoch(data))


@WAYS
def test_the_bench_makes_the_same_kind_of_batches(batched):
    images = RandomImages(Noise(batch_size=10, views=Views(full_colour, batched)), batches=3)
    batches = [images.on_after_batch_transfer(batch, 0) for batch in images.train_dataloader()]
    assert [batch.views[0].b.shape for batch in batches] == [(10, 3, 8, 8)] * 3


# Images read from disk


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_images_are_cropped_from_their_full_size(ready, tmp_path, monkeypatch, workers):
    root = str(write_data_set("ImageNet", tmp_path / "imagenet", monkeypatch))
    monkeypatch.setattr(ImageNet, "num_classes", 2)
    views = Views(full_colour, batched=False)
    data = ready(ImageNet(root, 16, batch_size=8, validation=0.2, num_workers=workers, views=views))
    assert data._splits["train"].picture(0).size == (64, 48)
    first = epoch(data)
    assert {batch.views[0].a.shape for batch in first} == {(8, 3, 16, 16)}
    again = ready(ImageNet(root, 16, batch_size=8, validation=0.2, views=views, num_workers=0))
    assert same(first, epoch(again))
    assert next(iter(data.val_dataloader())).images.shape[1:] == (16, 16, 3)


def test_streamed_images_have_no_batched_views(ready, tmp_path, monkeypatch):
    root = str(write_data_set("ImageNet", tmp_path / "imagenet", monkeypatch))
    data = ImageNet(root, 16, batch_size=8, validation=0.2, num_workers=0, views=Views(full_colour))
    with pytest.raises(DataError, match=r"images of ImageNet are read from disk.*: set views.batched to false\."):
        ready(data)


# What is refused, and configs


@pytest.mark.parametrize("levels", [(), (0.5,), (1.0, 0.5), (0.5, 0.5, 1), (-0.1, 1), (0.5, 1.5)])
def test_refuses_levels_that_do_not_rise_to_1(levels):
    with pytest.raises(DataError, match=r"views.levels must rise from 0 or more to 1, unlike \("):
        Views(full_colour, levels=levels)


def test_refuses_levels_without_batches():
    with pytest.raises(DataError, match=r"several levels are rendered in batches only: set views.batched to true"):
        Views(full_colour, batched=False, levels=(0.5, 1))


def test_refuses_views_in_batches_of_one():
    with pytest.raises(DataError, match="batch_size must be at least 2 with views"):
        Noise(batch_size=1, views=Views(full_colour))


def test_refuses_fewer_images_than_one_batch(ready):
    with pytest.raises(
        DataError, match=r"Noise has 83 training images, fewer than one batch of 84; .*lower batch_size"
    ):
        module(ready, batch_size=84)


@WAYS
@pytest.mark.parametrize(
    ("transform", "complaint"),
    [
        (SimCLRTransform, "SimCLRTransform normalises its views, .* normalize: null"),
        (lambda side: DINOTransform(), "Views come in pairs, but DINOTransform makes 8"),
    ],
)
def test_refuses_transforms_that_are_no_plain_pair(ready, batched, transform, complaint):
    with pytest.raises(DataError, match=complaint):
        module(ready, batched, transform)


def test_says_before_training_that_an_operation_has_no_batched_form(ready):
    def rotating(side):
        return SimCLRTransform(side, rr_prob=0.5, normalize=None)

    with pytest.raises(DataError, match=r"RandomRotate has no batched form: set views.batched to false"):
        module(ready, transform=rotating)
    assert isinstance(module(ready, False, rotating).train_dataloader(), DataLoader)


@pytest.mark.parametrize("views", [SimCLRViews, BarlowTwinsViews, VICRegViews])
def test_recipes_are_named_in_configs(ready, views):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Digits, "data")
    settings = {"class_path": f"datamodules.{views.__name__}", "init_args": {"min_scale": 0.3}}
    config = parser.parse_object({"data": {"views": {"transform": settings, "levels": [0.5, 1]}, "batch_size": 8}})
    data = ready(parser.instantiate_classes(config).data)
    assert data.views.levels == (0.5, 1.0)
    made = data.views.transform(8)
    assert isinstance(made, views)
    assert made.transforms[0].transform.transforms[0].scale == (0.3, 1.0)
    assert len(epoch(data)[0].views) == 2


def test_recipes_are_those_of_the_papers():
    def jitter_blur_solarize(transform):
        steps = transform.transform.transforms
        named = {type(step).__name__: step for step in steps}
        jitter = named["RandomApply"].transforms[0]
        limits = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        solarize = named.get("RandomSolarization")
        widths = [round((high - low) / 2, 6) for low, high in limits[:3]] + [limits[3][1]]
        return widths, named["GaussianBlur"].prob, solarize.prob if solarize else 0

    a, b = SimCLRViews(32).transforms
    assert jitter_blur_solarize(a) == jitter_blur_solarize(b) == ([0.8, 0.8, 0.8, 0.2], 0.5, 0)
    a, b = BarlowTwinsViews(32).transforms
    assert jitter_blur_solarize(a) == ([0.4, 0.4, 0.2, 0.1], 1.0, 0.0)
    assert jitter_blur_solarize(b) == ([0.4, 0.4, 0.2, 0.1], 0.1, 0.2)
    a, b = VICRegViews(32).transforms
    assert jitter_blur_solarize(a) == jitter_blur_solarize(b) == ([0.4, 0.4, 0.2, 0.1], 0.5, 0.1)
