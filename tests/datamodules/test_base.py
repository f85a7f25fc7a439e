import lightning.pytorch as L
import numpy as np
import pytest
import torch

from datamodules.augment import Augment, augment_batch, cutout, normalise
from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from datamodules.files import DataError
from datamodules.images import MemoryImages

TRAIN, TEST, CLASSES = 103, 30, 4


def numbered_images(count):
    """The first pixel of an image is its number; the classes are of unequal size and mixed."""
    images = torch.zeros(count, 4, 6, 1, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    sizes = np.random.default_rng(0).permutation(np.resize([0, 1, 1, 2, 2, 2, 3, 3, 3, 3], count))
    return MemoryImages(images, torch.from_numpy(sizes))


class Numbered(ImageDataModule):
    """Numbered images in memory; remembers what was loaded."""

    num_classes = CLASSES
    image_shape = (1, 4, 6)
    mean, std = (0.3,), (0.2,)

    def __init__(self, **options):
        super().__init__(**options)
        self.loaded = []

    def load(self, train):
        self.loaded.append("train" if train else "test")
        return numbered_images(TRAIN if train else TEST)


def numbers(batches):
    return [batch.images[:, 0, 0, 0].tolist() for batch in batches]


def flat(batches):
    return [number for batch in numbers(batches) for number in batch]


# Held-out validation


def test_validation_and_training_share_no_image_and_leave_none_out(ready):
    module = ready(Numbered())
    train, val = flat(module.train_dataloader()), flat(module.val_dataloader())
    assert sorted(train + val) == list(range(TRAIN))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_validation_has_its_share_of_every_class(ready, share):
    module = ready(Numbered(validation=share))
    val = torch.cat([batch.labels for batch in module.val_dataloader()])
    everything = numbered_images(TRAIN).labels
    assert len(val) == -int(-TRAIN * share // 1)
    for label in range(CLASSES):
        assert abs((val == label).sum() - share * (everything == label).sum()) < 1


def test_validation_is_the_same_for_every_seed(ready):
    held_out = [flat(ready(Numbered(seed=seed)).val_dataloader()) for seed in (0, 1, 17)]
    torch.manual_seed(9)
    np.random.seed(9)
    assert held_out == [flat(ready(Numbered()).val_dataloader())] * 3


def test_validation_is_not_simply_the_beginning_or_the_end(ready):
    val = flat(ready(Numbered()).val_dataloader())
    assert val == sorted(val)
    assert min(val) < TRAIN / 4
    assert max(val) > TRAIN * 3 / 4
    assert max(np.diff(val)) > 1


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_refuses_a_share_of_validation_that_is_none(share):
    with pytest.raises(DataError, match=rf"validation .* between 0 and 1, not {share}\."):
        Numbered(validation=share)


@pytest.mark.parametrize("size", [0, -1])
def test_refuses_batches_of_no_image(size):
    with pytest.raises(DataError, match=f"at least 1 image, not {size}"):
        Numbered(batch_size=size)


def test_says_so_when_validation_cannot_have_every_class(ready):
    with pytest.raises(DataError, match=r"Cannot hold 0\.01 of the 103 training images of Numbered out"):
        ready(Numbered(validation=0.01))


def test_validate_on_test_trains_on_all_training_images(ready):
    module = ready(Numbered(validate_on_test=True))
    assert sorted(flat(module.train_dataloader())) == list(range(TRAIN))
    assert flat(module.val_dataloader()) == list(range(TEST))
    labels = torch.cat([batch.labels for batch in module.val_dataloader()])
    assert torch.equal(labels, numbered_images(TEST).labels)


# Loaders


@pytest.mark.parametrize(
    ("stage", "loaded"), [("fit", ["train"]), ("validate", ["train"]), ("test", ["test"]), ("predict", ["test"])]
)
def test_a_stage_reads_only_the_split_it_needs(ready, stage, loaded):
    assert ready(Numbered(), stage).loaded == loaded


def test_no_split_is_read_twice(ready):
    module = Numbered()
    for stage in ("fit", "validate", "fit", "test", "predict"):
        ready(module, stage)
    assert module.loaded == ["train", "test"]


def test_a_subclass_must_say_how_to_load(ready):
    class Empty(ImageDataModule):
        pass

    with pytest.raises(NotImplementedError, match="Empty must implement load"):
        ready(Empty())


def test_the_title_is_the_class_name():
    assert Numbered().name == "Numbered"


@pytest.mark.parametrize("name", ["test", "predict"])
def test_test_images_come_in_order_with_a_last_smaller_batch(ready, name):
    module = ready(Numbered(batch_size=8), name)
    batches = list(getattr(module, f"{name}_dataloader")())
    assert flat(batches) == list(range(TEST))
    assert [len(batch.labels) for batch in batches] == [8, 8, 8, 6]


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(("stage", "name"), [("fit", "val"), ("validate", "val"), ("test", "test")])
def test_each_process_evaluates_its_share(ready, stage, name, processes):
    def share(rank):
        module = ready(Numbered(batch_size=8), stage, process=(rank, processes), training=False)
        return flat(getattr(module, f"{name}_dataloader")())

    parts = [share(rank) for rank in range(processes)]
    whole = flat(getattr(ready(Numbered(), stage), f"{name}_dataloader")())
    assert [whole[rank::processes] for rank in range(processes)] == parts


def test_every_process_predicts_the_whole_split(ready):
    module = ready(Numbered(), "predict", process=(1, 2))
    assert flat(module.predict_dataloader()) == list(range(TEST))


def test_batches_are_uint8_with_channels_last(ready):
    module = ready(Numbered(batch_size=16))
    for loader in (module.train_dataloader(), module.val_dataloader()):
        batch = next(iter(loader))
        assert isinstance(batch, Batch)
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (4, 6, 1)
        assert batch.labels.dtype == torch.int64


def test_images_keep_their_labels_when_shuffled(ready):
    labels = numbered_images(TRAIN).labels
    for batch in ready(Numbered()).train_dataloader():
        assert torch.equal(batch.labels, labels[batch.images[:, 0, 0, 0].long()])


def test_training_batches_follow_from_seed_and_step_only(ready):
    def order(seed, step):
        return numbers(ready(Numbered(batch_size=10, seed=seed), step=step).train_dataloader())

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(1, 0)
    batches = len(order(0, 0))
    assert order(0, batches) != order(0, 0)
    assert order(0, batches + 3) == order(0, batches)[3:]  # resumed in the middle of the second epoch


@pytest.mark.parametrize("limit", [4, 0.4])
def test_an_epoch_is_as_long_as_the_trainer_limits_it(ready, limit):
    def order(step, limit):
        return numbers(ready(Numbered(batch_size=10), step=step, limit=limit).train_dataloader())

    first, second = order(0, 1.0), order(10, 1.0)
    assert len(first) == 10
    assert order(0, limit) == first[:4]
    assert order(4, limit) == second[:4]
    assert order(6, limit) == second[2:4]


def test_one_loader_serves_all_epochs(ready):
    def trained_on(loader):
        for batch in loader:
            yield batch
            module.on_after_batch_transfer(batch, 0)
            module.trainer.global_step += 1

    module = ready(Numbered(batch_size=10))
    loader = module.train_dataloader()
    first, second = numbers(trained_on(loader)), numbers(trained_on(loader))
    assert first != second
    assert second == numbers(ready(Numbered(batch_size=10), step=len(first)).train_dataloader())


def test_workers_load_the_same_batches(ready):
    alone, helped = (ready(Numbered(batch_size=30, num_workers=workers)) for workers in (0, 1))
    assert numbers(alone.train_dataloader()) == numbers(helped.train_dataloader())


# On the device


def batch_of_noise(count=50):
    images = torch.randint(256, (count, 4, 6, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(count))


OPTIONS = Augment(pad=1, padding="reflect", flip=True, cutout=2)


def test_training_images_are_cropped_then_normalised_then_cut_out():
    module, images = Numbered(augment=OPTIONS), batch_of_noise().images
    torch.manual_seed(4)
    got = module.training_batch(Batch(images, torch.arange(50))).images
    torch.manual_seed(4)
    assert torch.equal(got, cutout(normalise(augment_batch(images, OPTIONS), (0.3,), (0.2,)), 2))


def test_augmentation_is_a_function_of_seed_and_step(ready):
    def transferred(seed, step):
        module = ready(Numbered(augment=OPTIONS, seed=seed), step=step)
        return module.on_after_batch_transfer(batch_of_noise(), 0).images

    first = transferred(0, 7)
    torch.rand(100)
    assert torch.equal(transferred(0, 7), first)
    assert not torch.equal(transferred(0, 8), first)
    assert not torch.equal(transferred(1, 7), first)


def test_what_is_drawn_after_the_transfer_follows_from_seed_and_step_too(ready):
    def drawn(step):
        ready(Numbered(), step=step).on_after_batch_transfer(batch_of_noise(), 0)
        return torch.rand(3).tolist()

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_evaluation_only_normalises_and_draws_nothing(ready):
    module, batch, state = ready(Numbered(augment=OPTIONS), training=False), batch_of_noise(), torch.get_rng_state()
    got = module.on_after_batch_transfer(batch, 0)
    assert torch.equal(got.images, normalise(batch.images, (0.3,), (0.2,)))
    assert torch.equal(got.labels, batch.labels)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
def test_transferred_batches_keep_labels_and_have_the_declared_shape(ready, training):
    module = ready(Numbered(augment=OPTIONS), training=training)
    got = module.on_after_batch_transfer(batch_of_noise(), 0)
    assert isinstance(got, Batch)
    assert got.images.dtype == torch.float32
    assert got.images.shape == (50, *module.image_shape)
    assert torch.equal(got.labels, torch.arange(50))


class Watcher(L.LightningModule):
    """Learns nothing; remembers the labels and the form of the batches it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        assert batch.images.dtype == torch.float32
        self.trained.append((self.current_epoch, batch.images))
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch.images)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def watch(tmp_path, module, **options):
    watcher = Watcher()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    L.Trainer(default_root_dir=tmp_path, enable_checkpointing=False, **quiet, **options).fit(watcher, module)
    return watcher


def numbers_of(normalised):
    """The first pixels, which hold the numbers, as they were before (x / 255 - 0.3) / 0.2."""
    return [round(255 * (0.2 * float(pixel) + 0.3)) for pixel in normalised[:, 0, 0, 0]]


def test_a_trainer_meets_every_image_once_per_epoch_in_new_order(tmp_path):
    watcher = watch(tmp_path, Numbered(batch_size=20), max_epochs=2, num_sanity_val_steps=0)
    first, second = (
        [number for at, images in watcher.trained if at == epoch for number in numbers_of(images)] for epoch in (0, 1)
    )
    val = numbers_of(watcher.validated[0])
    assert first != second
    assert sorted(first + val) == sorted(second + val) == list(range(TRAIN))
    assert torch.equal(watcher.validated[0], watcher.validated[1])
