import io
import os
import shutil
import traceback

import numpy as np
import pytest
import torch
from fake_data import FOLDER_CLASSES, everything, write_data_set
from PIL import Image

from datamodules.files import DataError
from datamodules.folders import ImageFolder, ImageNet, StreamedImages, read_image
from datamodules.images import MemoryImages


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return write_data_set("ImageFolder", tmp_path / "insects", monkeypatch)


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    return write_data_set("ImageNet", tmp_path / "imagenet", monkeypatch)


def pixels(path):
    return np.asarray(read_image(path))


def same(first, second):
    return all(map(torch.equal, everything(first), everything(second)))


def files(root):
    """(path, label) of every image below the folder, class by class."""
    return [
        (path, label) for label, name in enumerate(sorted(os.listdir(root))) for path in sorted((root / name).iterdir())
    ]


# One image


def test_reads_every_kind_of_image_in_three_colours(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for mode in ("L", "P", "RGB", "RGBA"):
        Image.fromarray(grey).convert(mode).save(tmp_path / "image.png")
        assert np.array_equal(pixels(tmp_path / "image.png"), np.repeat(grey[..., None], 3, axis=2)), mode


def half_a_jpeg():
    file = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(file, "JPEG")
    return file.getvalue()[: file.tell() // 2]


BROKEN = {
    "cut off": half_a_jpeg(),
    "empty": b"",
    "text": b"<html></html>",
    "broken header": b"P6 1x 1 255\n" + bytes(3),
    "absurd size": b"P6 99999 99999 255\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_image_is_named(tmp_path, content):
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"The image file {path} is damaged"):
        read_image(str(path))


# A person's own folders


@pytest.mark.parametrize("memory_gib", [4.0, 0])
def test_images_are_those_of_the_files_cropped_at_the_centre(folder, ready, memory_gib):
    expected = files(folder / "test")
    (folder / "test" / "notes.txt").write_text("beside the class folders")
    (folder / "test" / "ant" / "notes.txt").write_text("in a class folder")
    module = ready(ImageFolder(root=str(folder), memory_gib=memory_gib, batch_size=5), "test")
    assert module.classes == list(FOLDER_CLASSES["ImageFolder"])
    images, labels = everything(module.test_dataloader())
    assert labels.tolist() == [label for _, label in expected]
    for image, (path, _) in zip(images, expected, strict=True):
        assert np.array_equal(image, pixels(path)[:, 4:36])  # 40×32 pixels: the shorter side fits


def test_images_are_resized_by_their_shorter_side(folder, ready):
    module = ready(ImageFolder(root=str(folder), image_size=16), "test")
    image = next(iter(module.test_dataloader())).images[0]
    with Image.open(folder / "test" / "ant" / "ant_000.jpg") as file:
        expected = np.asarray(file.resize((20, 16), Image.Resampling.BILINEAR))[:, 2:18]
    assert module.image_shape == (3, 16, 16)
    assert np.array_equal(image, expected)


def test_small_sets_are_held_in_memory_and_large_ones_streamed(folder):
    gib = 36 * 3 * 32 * 32 / 2**30
    assert isinstance(ImageFolder(root=str(folder), memory_gib=gib).load(train=True), MemoryImages)
    assert isinstance(ImageFolder(root=str(folder), memory_gib=0.99 * gib).load(train=True), StreamedImages)


def test_batches_streamed_by_a_worker_are_those_from_memory(folder, ready):
    options = {"root": str(folder), "batch_size": 7, "seed": 3}
    held, streamed = ImageFolder(**options), ImageFolder(**options, memory_gib=0, num_workers=1)
    for module in (held, streamed):
        ready(ready(module), "test")
    for name in ("train", "val", "test"):
        assert same(*(getattr(module, f"{name}_dataloader")() for module in (held, streamed))), name


def test_a_set_has_the_name_of_its_folder_and_ones_own_statistics(folder, monkeypatch):
    assert ImageFolder(root=str(folder)).name == "insects"
    monkeypatch.chdir(folder)
    module = ImageFolder(root=".", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert module.name == "insects"
    assert (module.mean, module.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize(("memory_gib", "workers"), [(4.0, 0), (0, 0), (0, 1)])
def test_a_broken_image_of_the_set_is_named_in_one_sentence(folder, ready, memory_gib, workers):
    path = folder / "train" / "bee" / "bee_003.jpg"
    path.write_bytes(BROKEN["cut off"])
    module = ImageFolder(root=str(folder), memory_gib=memory_gib, validate_on_test=True, num_workers=workers)
    with pytest.raises(DataError, match=f"^The image file {path} is damaged") as caught:
        list(ready(module).train_dataloader())
    traceback.clear_frames(caught.tb)  # ends a worker now, not at some later garbage collection
    assert "Traceback" not in str(caught.value)


def without_classes(folder):
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    (folder / "train" / "bee.jpg").touch()


def without_bees(folder):
    for path in (folder / "train" / "bee").iterdir():
        path.unlink()


FAULTS = {
    "nothing there": (shutil.rmtree, "fit", r"The folder .*train \(.*one folder per class\) is missing"),
    "no test": (lambda folder: shutil.rmtree(folder / "test"), "test", r"The folder .*test \(.*\) is missing"),
    "no classes": (without_classes, "fit", "The folder .*train holds no class folders"),
    "no bees": (without_bees, "fit", "In .*train: .*bee"),
    "wasps": (
        lambda folder: (folder / "test" / "bee").rename(folder / "test" / "wasp"),
        "test",
        "The class folders of .*test .* differ in: bee, wasp",
    ),
}


@pytest.mark.parametrize(("damage", "stage", "complaint"), FAULTS.values(), ids=FAULTS)
def test_what_is_missing_is_named(folder, damage, stage, complaint):
    damage(folder)
    with pytest.raises(DataError, match=complaint) as caught:
        ImageFolder(root=str(folder)).setup(stage)
    assert str(folder) in str(caught.value)


# ImageNet


def module_of(root, **options):
    return ImageNet(
        root=str(root), **({"image_size": 42, "num_workers": 0, "batch_size": 8, "validation": 0.1} | options)
    )


def test_evaluation_images_are_cropped_at_the_centre(imagenet, ready):
    module = ready(ready(module_of(imagenet)), "test")
    images, labels = everything(module.test_dataloader())
    expected = files(imagenet / "val")
    assert labels.tolist() == [label for _, label in expected]
    for image, (path, _) in zip(images, expected, strict=True):
        assert np.array_equal(image, pixels(path)[3:45, 11:53])  # 42 × 256 / 224 = 48 is the shorter side
    images, labels = everything(module.val_dataloader())
    centres = {pixels(path)[3:45, 11:53].tobytes(): label for path, label in files(imagenet / "train")}
    assert [centres[image.numpy().tobytes()] for image in images] == labels.tolist()
    assert labels.bincount().tolist() == [3, 3]


def test_training_images_are_cropped_at_random(imagenet, ready):
    def crops(step):
        images, labels = everything(ready(module_of(imagenet), step=step).train_dataloader())
        assert images.shape == (54, 42, 42, 3)
        assert torch.equal((images.double().mean(dim=(1, 2, 3)) > 70).long(), labels)  # one class is brighter
        return {image.numpy().tobytes() for image in images}

    first, second = crops(step=0), crops(step=7)  # two epochs
    centres = {pixels(path)[3:45, 11:53].tobytes() for path, _ in files(imagenet / "train")}
    assert len(first) == len(second) == 54
    assert not first & second
    assert not first & centres
    crop = module_of(imagenet).transform(train=True)
    assert (tuple(crop.scale), tuple(crop.ratio)) == ((0.08, 1.0), (3 / 4, 4 / 3))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_same_seed_draws_the_same_crops(imagenet, ready, workers):
    def loaded(seed, before):
        module = ready(module_of(imagenet, num_workers=workers, seed=seed))
        torch.manual_seed(before)
        return list(module.train_dataloader())

    first = loaded(0, before=1)
    assert len(first) == 7
    assert same(first, loaded(0, before=2 if workers else 1))  # workers have seeds of their own
    assert not same(first, loaded(1, before=1))


def test_imagenet_keeps_its_name_and_has_1000_classes(imagenet, monkeypatch):
    monkeypatch.undo()
    module = ImageNet(root=str(imagenet))
    assert module.name == "ImageNet"
    with pytest.raises(DataError, match=f"{imagenet} holds 2 classes; ImageNet has 1000.* datamodules.ImageFolder"):
        module.setup("fit")
