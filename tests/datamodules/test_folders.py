import os
import shutil
import traceback

import numpy as np
import pytest
import torch
from fake_data import FOLDER_CLASSES, write_data_set
from PIL import Image
from torchvision.transforms import v2

from datamodules.files import DataError
from datamodules.folders import ImageFolder, ImageNet, StreamedImages, read_image
from datamodules.images import MemoryImages

CLASSES = FOLDER_CLASSES["ImageFolder"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return write_data_set("ImageFolder", tmp_path / "insects", monkeypatch)


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    return write_data_set("ImageNet", tmp_path / "imagenet", monkeypatch)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def everything(loader):
    batches = list(loader)
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in zip(first, second, strict=True)
    )


def files(root):
    """(path, label) of every image below the folder, class by class."""
    return [
        (path, label) for label, name in enumerate(sorted(os.listdir(root))) for path in sorted((root / name).iterdir())
    ]


def fault(call, *arguments):
    with pytest.raises(DataError) as caught:
        call(*arguments)
    return str(caught.value)


# One image


def test_decodes_every_kind_of_image_to_three_colours(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for mode in ("L", "P", "RGB", "RGBA"):
        Image.fromarray(grey).convert(mode).save(tmp_path / "image.png")
        decoded = decode(str(tmp_path / "image.png"), lambda image: image)
        assert decoded.dtype == torch.uint8
        assert np.array_equal(decoded, np.repeat(grey[..., None], 3, axis=2)), mode


def damaged_jpeg(path, how):
    content = path.read_bytes()
    path.write_bytes({"cut off": content[: len(content) // 2], "empty": b"", "text": b"<html></html>"}[how])


@pytest.mark.parametrize("how", ["cut off", "empty", "text"])
def test_a_broken_image_is_named(folder, how):
    path = folder / "train" / "bee" / "bee_003.jpg"
    damaged_jpeg(path, how)
    message = fault(decode, str(path), lambda image: image)
    assert f"The image file {path} is damaged" in message


def test_a_portable_pixmap_with_a_broken_header_is_named(tmp_path):
    path = tmp_path / "image.ppm"
    path.write_bytes(b"P6 1x 1 255\n" + bytes(3))
    assert str(path) in fault(decode, str(path), lambda image: image)


def test_an_image_of_absurd_size_is_named(tmp_path):
    path = tmp_path / "image.ppm"
    path.write_bytes(b"P6 99999 99999 255\n")
    assert str(path) in fault(decode, str(path), lambda image: image)


# A person's own folders


@pytest.mark.parametrize("memory_gib", [4.0, 0])
def test_images_are_those_of_the_files_cropped_at_the_centre(folder, ready, memory_gib):
    module = ready(ImageFolder(root=str(folder), memory_gib=memory_gib, batch_size=5), "test")
    images, labels = everything(module.test_dataloader())
    expected = files(folder / "test")
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


def test_labels_are_the_places_of_the_sorted_class_folders(folder, ready):
    module = ready(ImageFolder(root=str(folder)))
    assert module.classes == list(CLASSES)
    assert module.num_classes == 3
    images, labels = everything(module.train_dataloader())
    assert set(labels.tolist()) == {0, 1, 2}
    brightness = images.double().mean(dim=(1, 2, 3))  # noise of mean 30 on 80 per class
    assert (brightness - 30 - 80 * labels).abs().max() < 5


def test_small_sets_are_held_in_memory_and_large_ones_streamed(folder):
    gib = 36 * 3 * 32 * 32 / 2**30
    assert isinstance(ImageFolder(root=str(folder), memory_gib=gib).load(train=True), MemoryImages)
    assert isinstance(ImageFolder(root=str(folder), memory_gib=0.99 * gib).load(train=True), StreamedImages)


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_batches_are_those_from_memory(folder, ready, workers):
    options = {"root": str(folder), "batch_size": 7, "seed": 3}
    held, streamed = ImageFolder(**options), ImageFolder(**options, memory_gib=0, num_workers=workers)
    for module in (held, streamed):
        ready(ready(module), "test")
    for name in ("train", "val", "test"):
        first, second = (list(getattr(module, f"{name}_dataloader")()) for module in (held, streamed))
        assert same(first, second), name
        assert first[0].images.shape[1:] == (32, 32, 3)


def test_statistics_of_ones_own_images_may_be_given():
    module = ImageFolder(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert module.mean == (0.1, 0.2, 0.3)
    assert module.std == (0.4, 0.5, 0.6)


def test_the_title_is_the_name_of_the_folder(folder, monkeypatch):
    assert ImageFolder(root=str(folder)).name == "insects"
    monkeypatch.chdir(folder)
    assert ImageFolder(root=".").name == "insects"


def test_files_that_are_no_images_are_passed_over(folder, ready):
    (folder / "test" / "notes.txt").write_text("beside the class folders")
    (folder / "test" / "ant" / "notes.txt").write_text("in a class folder")
    assert len(everything(ready(ImageFolder(root=str(folder)), "test").test_dataloader())[1]) == 12


@pytest.mark.parametrize("memory_gib", [4.0, 0])
def test_a_broken_image_of_the_set_is_named(folder, ready, memory_gib):
    path = folder / "train" / "bee" / "bee_003.jpg"
    damaged_jpeg(path, "cut off")
    module = ImageFolder(root=str(folder), memory_gib=memory_gib, validate_on_test=True)
    assert str(path) in fault(lambda: list(ready(module).train_dataloader()))


def fault_met_by_a_worker(module):
    with pytest.raises(DataError) as caught:
        list(module.train_dataloader())
    traceback.clear_frames(caught.tb)  # ends the worker now, not at some later garbage collection
    return str(caught.value)


def test_a_broken_image_met_by_a_worker_is_named(folder, ready):
    path = folder / "train" / "bee" / "bee_003.jpg"
    damaged_jpeg(path, "cut off")
    module = ready(ImageFolder(root=str(folder), memory_gib=0, validate_on_test=True, num_workers=1))
    assert f"The image file {path} is damaged" in fault_met_by_a_worker(module)


def test_a_fault_met_by_a_worker_is_told_in_one_sentence(folder, ready):
    damaged_jpeg(folder / "train" / "bee" / "bee_003.jpg", "cut off")
    module = ready(ImageFolder(root=str(folder), memory_gib=0, validate_on_test=True, num_workers=1))
    assert "Traceback" not in fault_met_by_a_worker(module)


@pytest.mark.parametrize(("missing", "stage"), [("", "fit"), ("train", "fit"), ("test", "test")])
def test_a_missing_folder_is_named(folder, missing, stage):
    shutil.rmtree(folder / missing)
    message = fault(ImageFolder(root=str(folder)).setup, stage)
    assert f"The folder {folder / (missing or 'train')} " in message
    assert "is missing" in message
    assert "one folder per class" in message


def test_counting_the_classes_of_a_missing_folder_names_it(tmp_path):
    assert str(tmp_path / "train") in fault(lambda: ImageFolder(root=str(tmp_path)).num_classes)


def test_a_folder_without_class_folders_is_named(folder):
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    shutil.copy(folder / "test" / "ant" / "ant_000.jpg", folder / "train")
    assert f"The folder {folder / 'train'} holds no class folders" in fault(ImageFolder(root=str(folder)).setup, "fit")


def test_a_class_without_images_is_named(folder):
    for path in (folder / "train" / "bee").iterdir():
        path.unlink()
    message = fault(ImageFolder(root=str(folder)).setup, "fit")
    assert str(folder / "train") in message
    assert "bee" in message


def test_test_classes_other_than_those_of_training_are_named(folder):
    (folder / "test" / "bee").rename(folder / "test" / "wasp")
    message = fault(ImageFolder(root=str(folder)).setup, "test")
    assert str(folder / "test") in message
    assert "differ in: bee, wasp" in message


def test_too_few_images_for_validation_are_said_so(folder):
    message = fault(ImageFolder(root=str(folder), validation=0.01).setup, "fit")
    assert "of the 36 training images of insects" in message


# ImageNet


def module_of(root, **options):
    return ImageNet(
        root=str(root), **({"image_size": 42, "num_workers": 0, "batch_size": 8, "validation": 0.1} | options)
    )


def test_test_images_are_those_of_the_val_folder_cropped_at_the_centre(imagenet, ready):
    images, labels = everything(ready(module_of(imagenet), "test").test_dataloader())
    expected = files(imagenet / "val")
    assert labels.tolist() == [label for _, label in expected]
    for image, (path, _) in zip(images, expected, strict=True):
        assert np.array_equal(image, pixels(path)[3:45, 11:53])  # 42 × 256 / 224 = 48 is the shorter side


def test_held_out_images_are_cropped_at_the_centre_without_randomness(imagenet, ready):
    images, labels = everything(ready(module_of(imagenet)).val_dataloader())
    centres = {pixels(path)[3:45, 11:53].tobytes(): label for path, label in files(imagenet / "train")}
    assert [centres[image.numpy().tobytes()] for image in images] == labels.tolist()
    assert labels.bincount().tolist() == [3, 3]


def test_training_images_are_cropped_at_random(imagenet, ready):
    def crops(step):
        images, _ = everything(ready(module_of(imagenet), step=step).train_dataloader())
        assert images.shape == (54, 42, 42, 3)
        return {image.numpy().tobytes() for image in images}

    first, second = crops(step=0), crops(step=7)  # two epochs
    centres = {pixels(path)[3:45, 11:53].tobytes() for path, _ in files(imagenet / "train")}
    assert len(first) == len(second) == 54
    assert not first & second
    assert not first & centres


def test_training_crops_have_8_to_100_percent_of_the_area_and_are_of_the_image(imagenet):
    crop = module_of(imagenet).transform(train=True)
    assert isinstance(crop, v2.RandomResizedCrop)
    assert tuple(crop.scale) == (0.08, 1.0)
    assert tuple(crop.ratio) == (3 / 4, 4 / 3)
    assert list(crop.size) == [42, 42]


def test_training_crops_keep_their_labels(imagenet, ready):
    images, labels = everything(ready(module_of(imagenet)).train_dataloader())
    brightness = images.double().mean(dim=(1, 2, 3))
    assert torch.equal((brightness > 70).long(), labels)


def test_workers_draw_the_same_crops_for_the_same_seed(imagenet, ready):
    def loaded(seed, before):
        module = ready(module_of(imagenet, num_workers=1, seed=seed))
        torch.manual_seed(before)
        return list(module.train_dataloader())

    first = loaded(0, before=1)
    assert len(first) == 7
    assert same(first, loaded(0, before=2))  # whatever was drawn before
    assert not same(first, loaded(1, before=1))


def test_without_workers_too_the_same_seed_draws_the_same_crops(imagenet, ready):
    def loaded(seed):
        torch.manual_seed(seed)
        return list(ready(module_of(imagenet, seed=seed)).train_dataloader())

    assert same(loaded(0), loaded(0))
    assert not same(loaded(0), loaded(1))


def test_workers_load_the_same_evaluation_batches(imagenet, ready):
    alone, helped = (ready(module_of(imagenet, num_workers=workers)) for workers in (0, 1))
    assert same(list(alone.val_dataloader()), list(helped.val_dataloader()))


def test_imagenet_has_1000_classes_and_says_so(imagenet, monkeypatch):
    monkeypatch.undo()
    message = fault(ImageNet(root=str(imagenet)).setup, "fit")
    assert f"{imagenet} holds 2 classes; ImageNet has 1000" in message
    assert "datamodules.ImageFolder" in message


def test_a_missing_val_folder_of_imagenet_is_named(imagenet):
    shutil.rmtree(imagenet / "val")
    assert f"The folder {imagenet / 'val'} " in fault(module_of(imagenet).setup, "test")


def test_imagenet_keeps_its_name_wherever_it_lies(imagenet):
    assert ImageNet(root=str(imagenet.parent)).name == "ImageNet"
