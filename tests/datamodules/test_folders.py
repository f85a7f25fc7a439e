import io
import os
import re
import shutil
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_data import FOLDER_CLASSES, everything, write_data_set
from PIL import Image

from datamodules import decoded
from datamodules.files import DataError
from datamodules.folders import ImageFolder, ImageNet, StreamedImages, in_one_array, read_image
from datamodules.images import Fitted, MemoryImages


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


RAMP = np.arange(0, 65536, 1040, dtype=np.uint16).reshape(8, 8)
PGM = b"P5 8 8 65535\n" + RAMP.astype(">u2").tobytes()


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_grey_levels_of_16_bits_become_ones_of_8(tmp_path, kind):
    path = tmp_path / f"image.{kind}"
    path.write_bytes(PGM) if kind == "pgm" else Image.fromarray(RAMP).save(path)
    assert np.array_equal(pixels(path), np.repeat(np.rint(RAMP / 257)[..., None], 3, axis=2))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_whose_white_is_not_known_are_refused(tmp_path, dtype):
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "image.tif")
    with pytest.raises(DataError, match=r"image\.tif .* of Pillow's mode [FI], where white is not known: save 8 or 16"):
        pixels(tmp_path / "image.tif")


@pytest.mark.parametrize(
    ("orientation", "upright"), [(1, lambda x: x), (3, lambda x: np.rot90(x, 2)), (6, lambda x: np.rot90(x, -1))]
)
def test_photographs_are_turned_upright(tmp_path, orientation, upright):
    exif, image = Image.Exif(), np.arange(48, dtype=np.uint8).reshape(6, 8)
    exif[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / "image.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "image.png")[..., 0], upright(image))


@pytest.mark.parametrize("content", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0nonsense"])
def test_broken_exif_data_say_nothing(tmp_path, content):
    image = np.full((16, 16), 90, np.uint8)
    Image.fromarray(image).save(tmp_path / "image.jpg", exif=content)
    assert np.array_equal(pixels(tmp_path / "image.jpg")[..., 0], image)


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_among_the_images_is_named_and_not_waited_for(folder):
    path = folder / "train" / "bee" / "bee_100.jpg"
    os.mkfifo(path)
    with pytest.raises(DataError, match=f"{path} is damaged .*no file"):
        ImageFolder(root=str(folder)).setup("fit")


def test_large_jpeg_files_are_decoded_reduced_to_nearly_the_same_picture(tmp_path):
    path = str(tmp_path / "photo.jpg")
    few = np.random.default_rng(0).integers(256, size=(6, 8, 3), dtype=np.uint8)
    Image.fromarray(few).resize((520, 400), Image.Resampling.BICUBIC).save(path, quality=95)
    for enough, size in ((32, (65, 50)), (51, (130, 100)), (64, (130, 100)), (401, (520, 400)), (None, (520, 400))):
        assert read_image(path, enough).size == size
    images = StreamedImages(in_one_array([path]), torch.zeros(1).long(), Fitted((3, 32, 32)), Fitted((3, 32, 32)))
    reduced = images.__getitems__([0]).images[0].numpy().astype(int)
    assert np.array_equal(reduced, Fitted((3, 32, 32))(read_image(path, 64)))
    assert 0 < np.abs(reduced - np.asarray(Fitted((3, 32, 32))(read_image(path)))).max() <= 4
    assert images.picture(0).size == (520, 400)


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


def test_predicted_images_are_known_by_their_files(folder, ready):
    module = ready(ImageFolder(root=str(folder), image_size=8), "test")
    known = module.predicted
    assert known["label"] == [Path(file).parts[0] for file in known["file"]]
    assert len(known["file"]) == len(module.predict_dataloader().dataset)
    assert all((folder / "test" / file).is_file() for file in known["file"])


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


def test_reading_draws_nothing_and_says_how_far_it_is(folder, monkeypatch, capsys):
    monkeypatch.setattr("datamodules.folders._DECODED_AT_A_TIME", 5)
    monkeypatch.setattr(decoded, "_INTERVAL", {True: 0, False: 0})
    state = torch.get_rng_state()
    ImageFolder(root=str(folder)).load(train=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr().err == ""  # it does not take long
    monkeypatch.setattr(decoded, "_PATIENCE", 0)
    ImageFolder(root=str(folder), num_workers=1).load(train=True)
    assert re.search(r"reading .*insects/train: .*35/36", capsys.readouterr().err)


def pixels_of(images):
    return images.__getitems__(torch.arange(len(images))).images


def test_decoded_images_are_kept_for_the_next_command(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.folders._DECODED_AT_A_TIME", 5)
    load = partial(ImageFolder(root=str(folder), cache=str(tmp_path / "cache")).load, train=True)
    known = pixels_of(ImageFolder(root=str(folder)).load(train=True))
    assert torch.equal(pixels_of(load()), known)
    (file,) = (tmp_path / "cache").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("datamodules.folders.read_image", None)
        assert torch.equal(pixels_of(load()), known)
    file.write_bytes(b"cut off")
    (tmp_path / "cache" / f"{file.name}.part").write_bytes(b"what a killed run left")
    assert torch.equal(pixels_of(load()), known)
    assert [*(tmp_path / "cache").iterdir()] == [file]


def test_what_another_process_keeps_or_gives_up_meanwhile_is_seen(tmp_path, monkeypatch):
    file = tmp_path / "name.images"
    part = tmp_path / "name.images.part"
    others = [lambda: file.write_bytes(bytes(12)), part.unlink]  # the last first, while the lock is waited for
    monkeypatch.setattr(decoded.fcntl, "flock", lambda *_: others.pop()())
    assert not decoded.kept([torch.ones(1, 2, 2, 3).byte()], (1, 2, 2, 3), file).any()
    assert not others


def test_other_files_or_another_size_are_decoded_anew(folder, tmp_path):
    options = {"root": str(folder), "cache": str(tmp_path / "cache")}
    for size in (32, 16):
        images = ImageFolder(image_size=size, **options).load(train=True)
        assert pixels_of(images).shape == (36, size, size, 3)
    assert len([*(tmp_path / "cache").iterdir()]) == 2
    Image.new("RGB", (32, 32), "red").save(folder / "train" / "bee" / "bee_003.jpg")
    red = pixels_of(ImageFolder(**options).load(train=True))[15]
    assert red[0, 0, 0] > 250 > 5 > red[0, 0, 1]


@pytest.mark.parametrize("place", ["cache", "train/bee/bee_001.jpg"])
def test_what_cannot_be_kept_leaves_nothing(folder, place):
    (folder / "train" / "bee" / "bee_003.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"bee_003.jpg is damaged|cannot be kept in .*bee_001.jpg \(File exists\)"):
        ImageFolder(root=str(folder), cache=str(folder / place)).load(train=True)
    assert not [*folder.glob("cache/*")]


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


@pytest.mark.parametrize(("memory_gib", "workers"), [(4.0, 0), (0, 0), (0, 1)])
def test_a_broken_image_is_named_and_another_of_its_class_shown_if_asked_for(folder, ready, capfd, memory_gib, workers):
    paths = [path for path, _ in files(folder / "test")]
    options = {"root": str(folder), "memory_gib": memory_gib, "damaged": "skip", "num_workers": workers}
    whole, _ = everything(ready(ImageFolder(**options), "test").test_dataloader())
    for number in (4, 5, 11):  # the first bees, the last cat
        paths[number].write_bytes(BROKEN["cut off"])
    images, labels = everything(ready(ImageFolder(**options), "test").test_dataloader())
    assert torch.equal(images, whole[[0, 1, 2, 3, 6, 6, 6, 7, 8, 9, 10, 10]])
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    said = capfd.readouterr().err
    assert [said.count(f"note: The image file {path} is damaged") for path in paths[3:7]] == [0, 1, 1, 0]
    assert "Another image of its class stands in for it." in said


def test_others_stand_in_on_both_sides_of_what_is_held_out(folder, ready):
    for path, _ in files(folder / "train")[::2]:
        path.write_bytes(BROKEN["cut off"])
    module = ready(ImageFolder(root=str(folder), memory_gib=0, damaged="skip", validation=0.5))
    for loader in (module.train_dataloader(), module.val_dataloader()):
        assert everything(loader)[1].bincount().tolist() == [6, 6, 6]


def test_a_class_without_any_image_that_can_be_read_ends_the_run(folder):
    for path in (folder / "test" / "bee").iterdir():
        path.write_bytes(BROKEN["cut off"])
    with pytest.raises(DataError, match=r"bee_000\.jpg is damaged"):
        ImageFolder(root=str(folder), damaged="skip").setup("test")


@pytest.mark.parametrize("random_crop", [False, True])
def test_images_may_be_oblong(folder, ready, random_crop):
    module = ImageFolder(root=str(folder), image_size=(20, 40), random_crop=random_crop)
    assert ready(ready(module), "test").image_shape == (3, 20, 40)
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        assert everything(loader)[0].shape[1:] == (20, 40, 3)
    if not random_crop:
        image = next(iter(module.test_dataloader())).images[0]
        assert np.array_equal(image, pixels(folder / "test" / "ant" / "ant_000.jpg")[6:26])  # of 40×32 pixels


def test_random_crops_of_ones_own_images_are_those_of_imagenet(imagenet, ready):
    folder = imagenet.rename(imagenet.with_name("own"))
    (folder / "val").rename(folder / "test")
    options = {"image_size": 42, "batch_size": 8, "validation": 0.1, "num_workers": 0}
    ours = ready(ready(ImageFolder(root=str(folder), random_crop=True, **options)), "test")
    (folder / "test").rename(folder / "val")
    theirs = ready(ready(ImageNet(root=str(folder), **options)), "test")
    for name in ("train", "val"):
        loaders = []
        for module in (ours, theirs):
            torch.manual_seed(0)
            loaders.append(list(getattr(module, f"{name}_dataloader")()))
        assert same(*loaders), name
    epochs = []
    for ours.trainer.global_step in (0, 7):
        epochs.append(list(ours.train_dataloader()))
    assert not same(*epochs)  # drawn anew


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
    assert same(first, loaded(0, before=2))  # each batch has a seed of its own
    assert not same(first, loaded(1, before=1))


def test_imagenet_keeps_its_name_and_has_1000_classes(imagenet, monkeypatch):
    monkeypatch.undo()
    module = ImageNet(root=str(imagenet))
    assert module.name == "ImageNet"
    with pytest.raises(DataError, match=f"{imagenet} holds 2 classes, not 1000.* set --data.num_classes 2"):
        module.setup("fit")


def test_a_part_of_imagenet_has_outputs_of_its_own_and_another_name(imagenet, ready, monkeypatch):
    monkeypatch.undo()
    module = ready(module_of(imagenet, num_classes=2))
    assert (module.num_classes, module.name) == (2, "ImageNet-2-classes")
    with pytest.raises(DataError, match="holds 2 classes, not 3"):
        module_of(imagenet, num_classes=3).setup("fit")


def test_a_size_that_no_image_has_is_refused(tmp_path):
    with pytest.raises(DataError, match="1000000×1000000: Pillow reads no"):
        ImageFolder(root=str(tmp_path), image_size=1_000_000)
