import numpy as np
import pytest
import torch

from datamodules.augment import Augment, augment_batch, cutout, normalise
from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from datamodules.files import DataError
from datamodules.images import MemoryImages
from datamodules.views.transforms import SimCLRViews, Views

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
    return [number for some in numbers(batches) for number in some]


# Images in memory


def test_a_batch_is_the_images_and_labels_asked_for():
    images = numbered_images(20)
    batch = images.__getitems__(torch.tensor([7, 3, 7]))
    assert numbers([batch]) == [[7, 3, 7]]
    assert batch.labels.tolist() == images.labels[[7, 3, 7]].tolist()
    picture = images.picture(7)
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("L", (6, 4), 7)


def test_a_subset_of_a_subset_counts_from_its_own_beginning_and_copies_nothing():
    images = numbered_images(20)
    part = images.subset(torch.arange(10, 20)).subset(torch.tensor([4, 2]))
    assert len(part) == 2
    assert numbers([part.__getitems__(torch.tensor([0, 1]))]) == [[14, 12]]
    assert part.labels.tolist() == images.labels[[14, 12]].tolist()
    assert part._images.data_ptr() == images._images.data_ptr()


# Held-out validation


def test_validation_is_what_training_leaves_out_from_everywhere(ready):
    module = ready(Numbered())
    train, val = flat(module.train_dataloader()), flat(module.val_dataloader())
    assert sorted(train + val) == list(range(TRAIN))
    assert val == sorted(val)
    assert min(val) < TRAIN / 4
    assert max(val) > TRAIN * 3 / 4


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_validation_has_its_share_of_every_class(ready, share):
    module = ready(Numbered(validation=share))
    val = torch.cat([batch.labels for batch in module.val_dataloader()])
    everything = numbered_images(TRAIN).labels
    assert len(val) == -int(-TRAIN * share // 1)
    assert ((val.bincount() - share * everything.bincount()).abs() < 1).all()


def test_validation_is_the_same_for_every_seed(ready):
    held_out = flat(ready(Numbered(seed=17)).val_dataloader())
    np.random.seed(9)
    assert flat(ready(Numbered()).val_dataloader()) == held_out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"validation": 0}, r"validation .* between 0 and 1, not 0\."),
        ({"validation": 1}, r"validation .* between 0 and 1, not 1\."),
        ({"validation": float("nan")}, r"validation .* between 0 and 1, not nan\."),
        ({"batch_size": 0}, "at least 1 image, not 0"),
        ({"batch_sizes": {0: 0}}, "at least 1 image, not 0: change batch_size or batch_sizes"),
        ({"batch_sizes": {-1: 10}}, "batch_sizes counts epochs from 0; there is no epoch -1"),
        ({"batch_size": 1, "views": Views(SimCLRViews)}, "batch_size must be at least 2 with views"),
    ],
)
def test_refuses_options_that_make_no_sense(options, complaint):
    with pytest.raises(DataError, match=complaint):
        Numbered(**options)


def test_says_so_when_validation_cannot_have_every_class(ready):
    complaint = r"Cannot hold 0\.01 of the 103 training images of Numbered out .* Change --data\.validation\."
    with pytest.raises(DataError, match=complaint):
        ready(Numbered(validation=0.01))


def test_validate_on_test_trains_on_all_training_images(ready):
    module = ready(Numbered(validate_on_test=True))
    assert sorted(flat(module.train_dataloader())) == list(range(TRAIN))
    assert flat(module.val_dataloader()) == list(range(TEST))


# Loaders


def test_a_stage_reads_only_the_split_it_needs_and_none_twice(ready):
    module = Numbered()
    for stage in ("fit", "validate", "fit"):
        assert ready(module, stage).loaded == ["train"]
    for stage in ("test", "predict"):
        assert ready(module, stage).loaded == ["train", "test"]
        assert ready(Numbered(), stage).loaded == ["test"]


def test_a_subclass_must_say_how_to_load(ready):
    class Empty(ImageDataModule):
        pass

    with pytest.raises(DataError, match=r"Empty must have a method load\(self, train\)"):
        ready(Empty())


IMAGES, LABELS = torch.zeros(12, 4, 6, 1, dtype=torch.uint8), torch.arange(12) % CLASSES
WRONG = {
    "nothing": (lambda: None, "is of type NoneType: load must return images, as MemoryImages"),
    "a pair": (lambda: (IMAGES, LABELS), "is of type tuple: load must return images"),
    "no image": (lambda: MemoryImages(IMAGES[:0], LABELS[:0]), "has no images"),
    "more images": (lambda: MemoryImages(IMAGES, LABELS[1:]), "has 12 images, but 11 labels"),
    "more labels": (lambda: MemoryImages(IMAGES[1:], LABELS), "has 11 images, but 12 labels"),
    "one number": (lambda: MemoryImages(IMAGES, 3), "has 12 images, but 1 labels"),
    "float images": (
        lambda: MemoryImages(IMAGES / 255, LABELS),
        r"has images of .* type torch\.float32; .*torch\.uint8",
    ),
    "channels first": (
        lambda: MemoryImages(IMAGES.permute(0, 3, 1, 2), LABELS),
        r"has images of shape \(1, 4, 6\) .* \(height, width, channels\) = \(4, 6, 1\)",
    ),
    "no channel": (lambda: MemoryImages(IMAGES[..., 0], LABELS), r"has images of shape \(4, 6\)"),
    "negative label": (lambda: MemoryImages(IMAGES, LABELS - 1), "has labels from -1 to 2, counted from 0; those of 4"),
    "label too high": (lambda: MemoryImages(IMAGES, LABELS + 1), "has labels from 1 to 4, .* go from 0 to 3"),
    "float labels": (
        lambda: MemoryImages(IMAGES, LABELS / 2),
        r"has labels of .* type torch\.float32; .* whole number",
    ),
    "boolean labels": (lambda: MemoryImages(IMAGES, LABELS > 1), r"has labels of .* type torch\.bool"),
    "one-hot labels": (lambda: MemoryImages(IMAGES, torch.eye(12).int()), r"has labels of shape \(12, 12\)"),
}


@pytest.mark.parametrize(("load", "complaint"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(("stage", "split"), [("fit", "training"), ("test", "test")])
def test_what_a_data_set_of_ones_own_gives_is_compared_with_what_it_says(ready, load, complaint, stage, split):
    module = Numbered()
    module.load = lambda train: load()
    with pytest.raises(DataError, match=f"^The {split} split of Numbered {complaint}"):
        ready(module, stage)


def test_a_data_set_of_ones_own_must_say_what_its_images_are():
    class Empty(ImageDataModule):
        image_shape, std = (1, 8, 8), (0.5,)

    with pytest.raises(DataError, match=r"Empty must say its num_classes, mean\."):
        Empty().require_constants()


@pytest.mark.parametrize(
    ("constants", "complaint"),
    [
        ({"image_shape": (4, 6)}, r"image_shape is \(channels, height, width\) of the images, not \(4, 6\)"),
        ({"image_shape": 6}, "image_shape is .* not 6"),
        (
            {"mean": (0.3,) * 3},
            r"one number per channel, .* not \(0\.3, 0\.3, 0\.3\) and \(0\.2,\); image_shape",
        ),
        ({"std": 0.2}, r"one number per channel, .* and 0\.2"),
        *(({"std": (wrong,)}, "those of std above 0") for wrong in (0.0, -1.0, float("nan"), float("inf"))),
    ],
)
def test_constants_that_do_not_go_together_are_refused(constants, complaint):
    module = Numbered()
    module.require_constants()
    vars(module).update(constants)
    with pytest.raises(DataError, match=complaint):
        module.require_constants()


def test_labels_that_are_no_numbers_are_told():
    with pytest.raises(DataError, match="The labels of a data set are a tensor or an array of numbers"):
        MemoryImages(IMAGES, ["cat"] * 12)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.uint64, list])
def test_arrays_and_whole_numbers_of_all_kinds_will_do(ready, kind):
    module = Numbered(validate_on_test=True)
    module.load = lambda train: MemoryImages(
        IMAGES.numpy(), LABELS.tolist() if kind is list else LABELS.numpy().astype(kind)
    )
    [batch] = ready(module).val_dataloader()
    assert torch.equal(batch.images, IMAGES)
    assert torch.equal(batch.labels, LABELS)


def test_views_of_images_that_are_not_square_are_refused(ready):
    with pytest.raises(DataError, match="Views are square, and the images of Numbered are not"):
        ready(Numbered(batch_size=8, views=Views(SimCLRViews)))


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(("stage", "name"), [("fit", "val"), ("validate", "val"), ("test", "test")])
def test_each_process_evaluates_its_share_in_order(ready, stage, name, processes):
    def share(rank, processes):
        module = ready(Numbered(batch_size=8), stage, process=(rank, processes), training=False)
        return flat(getattr(module, f"{name}_dataloader")())

    whole = share(0, 1)
    assert whole == (list(range(TEST)) if name == "test" else sorted(whole))
    parts = [share(rank, processes) for rank in range(processes)]
    assert parts == [whole[rank::processes] for rank in range(processes)]


def test_every_process_predicts_the_whole_split(ready):
    module = ready(Numbered(), "predict", process=(1, 2))
    assert flat(module.predict_dataloader()) == list(range(TEST))


@pytest.mark.parametrize("limit", [4, 0.4])
def test_training_batches_follow_from_seed_step_and_limit_only(ready, limit):
    def order(step, limit=1.0, seed=0):
        return numbers(ready(Numbered(batch_size=10, seed=seed), step=step, limit=limit).train_dataloader())

    first, second = order(0), order(10)
    assert len(first) == 10
    assert first == order(0)
    assert first != order(0, seed=1)
    assert first != second
    assert order(13) == second[3:]
    assert order(0, limit) == first[:4]
    assert order(0, limit=20) == first
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


# On the device


OPTIONS = Augment(pad=1, padding="reflect", flip=True, cutout=2)
NOISE = torch.randint(256, (50, 4, 6, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BATCH = Batch(NOISE, torch.arange(50))


def test_training_images_are_cropped_then_normalised_then_cut_out():
    torch.manual_seed(4)
    got = Numbered(augment=OPTIONS).training_batch(BATCH)
    torch.manual_seed(4)
    assert torch.equal(got.images, cutout(normalise(augment_batch(NOISE, OPTIONS), (0.3,), (0.2,)), 2))
    assert torch.equal(got.labels, BATCH.labels)


def test_what_a_step_draws_is_a_function_of_seed_and_step(ready):
    def transferred(seed, step):
        images = ready(Numbered(augment=OPTIONS, seed=seed), step=step).on_after_batch_transfer(BATCH, 0).images
        return torch.cat([images.flatten(), torch.rand(3)])  # and what dropout will draw

    first = transferred(0, 7)
    torch.rand(100)
    assert torch.equal(transferred(0, 7), first)
    for seed, step in ((0, 8), (1, 7)):
        other = transferred(seed, step)
        assert not torch.equal(other[:-3], first[:-3])
        assert not torch.equal(other[-3:], first[-3:])


def test_evaluation_only_normalises_and_draws_nothing(ready):
    module, state = ready(Numbered(augment=OPTIONS), training=False), torch.get_rng_state()
    got = module.on_after_batch_transfer(BATCH, 0)
    assert torch.equal(got.images, normalise(NOISE, (0.3,), (0.2,)))
    assert torch.equal(got.labels, BATCH.labels)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trainer_meets_every_image_once_per_epoch_in_new_order(watch):
    def shown(batches):
        """The first pixels, which hold the numbers, as they were before (x / 255 - 0.3) / 0.2."""
        first_pixels = torch.cat([batch.images[:, 0, 0, 0] for batch in batches])
        return (255 * (0.2 * first_pixels + 0.3)).round().int().tolist()

    watcher = watch(Numbered(batch_size=20))
    (first, second), val = map(shown, watcher.trained), shown(watcher.validated[:1])
    assert first != second
    assert sorted(first + val) == sorted(second + val) == list(range(TRAIN))
    assert shown(watcher.validated[1:]) == val


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_of_several_processes_says_what_a_person_should_know(ready, rank, capsys, tmp_path):
    ready(Numbered(), process=(rank, 2)).note(str(tmp_path))
    assert capsys.readouterr().err == ("" if rank else f"note: {tmp_path}\n")


# Alternating flips


def orientations(module, steps):
    """Which image each batch of a step holds → whether it is mirrored there."""
    found = []
    for step in steps:
        module.trainer.global_step = step
        batch = Batch(torch.arange(4, dtype=torch.uint8).view(1, 1, 4, 1).expand(30, 1, 4, 1), torch.zeros(30).long())
        numbered = batch._replace(indices=torch.arange(30))
        images = module.on_after_batch_transfer(numbered, 0).images
        found.append(images[:, 0, 0, 0] > images[:, 0, 0, 3])
    return torch.stack(found)


def test_two_epochs_show_each_image_once_in_each_orientation(ready):
    module = ready(Numbered(batch_size=30, augment=Augment(flip="alternate")))
    steps = len(module.train_dataloader())
    assert torch.equal(*orientations(module, [0, steps - 1]))
    module = ready(Numbered(batch_size=30, augment=Augment(flip="alternate")))
    first, second, third, fourth = orientations(module, range(0, 4 * steps, steps))
    assert 5 < first.sum() < 25
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    assert torch.equal(second, fourth)


def test_a_resumed_run_shows_the_same_orientations(ready):
    options = {"batch_size": 30, "augment": Augment(flip="alternate")}
    everything = orientations(ready(Numbered(**options)), range(4))
    assert torch.equal(orientations(ready(Numbered(**options), step=3), [3])[0], everything[3])
    other = orientations(ready(Numbered(seed=1, **options)), [0])[0]
    assert not torch.equal(other, everything[0])


def test_images_that_are_none_of_the_training_split_are_mirrored_at_random():
    module = Numbered(augment=Augment(flip="alternate"))
    torch.manual_seed(4)
    got = module.training_batch(BATCH).images
    torch.manual_seed(4)
    assert torch.equal(got, normalise(augment_batch(NOISE, Augment(flip=True)), (0.3,), (0.2,)))
