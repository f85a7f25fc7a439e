"""``predict`` on images without labels, from the run folder alone."""

import csv
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_data import write_data_set
from helpers import CONFIGS, SMALL, fault
from PIL import Image

from datamodules.files import DataError
from datamodules.folders import ImageFolder, read_image
from datamodules.toys import Rings
from datamodules.unlabelled import UnlabelledImages
from experiments.callbacks.predictions import PredictionsFile
from experiments.cli import main
from models.method import Method

COMMANDS = Path(__file__).parents[2] / "docs" / "commands.md"
BRIEF = ("--trainer.max_epochs=1", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network trained on a person's own images, which are gone; some photos, one of them in a subfolder."""
    root = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        write_data_set("ImageFolder", root / "insects", patch)
    config = CONFIGS / "decoupled_greedy" / "cifar10_folder_resnet20.yaml"
    network = (
        "--model.network=VGG",
        "--model.network.plan=[8,8,M,16,16]",
        "--model.num_blocks=2",
        "--model.cut.by=units",
    )
    data = (f"--data.root={root / 'insects'}", "--data.mean=[0.1,0.2,0.3]", "--data.image_size=24")
    main(["fit", f"--config={config}", f"--runs={root}", "--name=RUN", *SMALL[1:], *network, *data, *BRIEF])
    (root / "photos" / "more").mkdir(parents=True)
    for name, path in (("a.jpg", "ant/ant_000.jpg"), ("more/é.jpg", "cat/cat_001.jpg"), ("z.jpg", "bee/bee_002.jpg")):
        shutil.copy(root / "insects" / "test" / path, root / "photos" / name)
    (root / "photos" / "notes.txt").write_text("no image")
    shutil.rmtree(root / "insects")
    return root / "RUN"


def options(run, *more):
    return ["predict", f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", *more]


def predictions(run, name="predictions-photos.csv"):
    with (run / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_photos_are_named_as_the_documents_say(run):
    line = re.search(r"^local-learning (predict .*--images .*)$", COMMANDS.read_text(), re.MULTILINE)[1]
    words = line.replace("runs/RUN", str(run)).replace("FOLDER", str(run.parent / "photos")).split()
    with warnings.catch_warnings(record=True) as warned:
        main(words)
    assert not [warning for warning in warned if "sampler" in str(warning.message)]
    found = predictions(run)
    assert [row["file"] for row in found] == ["a.jpg", "z.jpg", "more/é.jpg"]
    model = Method.load_from_checkpoint(run / "checkpoints" / "last.ckpt").eval()
    data = ImageFolder(image_size=24, mean=(0.1, 0.2, 0.3), std=(0.2471, 0.2435, 0.2616))
    for row in found:
        image = np.asarray(data.transform(train=False)(read_image(str(run.parent / "photos" / row["file"]))))
        best = model(data.normalised(torch.from_numpy(image)[None])).softmax(1).max(1)
        assert row["class"] == ("ant", "bee", "cat")[best.indices]
        assert float(row["probability"]) == pytest.approx(best.values.item(), rel=1e-4)


def test_a_run_is_gone_on_with_by_its_folder_alone(copied):
    main(["fit", f"--ckpt_path={copied}", "--trainer.max_epochs=3"])
    assert json.loads((copied / "summary.json").read_text())["epochs"] == 3


def without_names(run, folder, *lost):
    """A copy of the run whose checkpoint is from before names, or arguments, were kept."""
    copy = shutil.copytree(run, folder / "RUN")
    last = copy / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["classes"]
    for part in lost:
        del content[part]
    torch.save(content, last)
    return copy


def test_a_run_that_knows_no_names_gives_numbers(run, tmp_path):
    old = without_names(run, tmp_path)
    main(options(old, f"--images={run.parent / 'photos'}"))
    assert {row["class"] for row in predictions(old)} <= {"0", "1", "2"}


def test_a_run_that_knows_no_number_of_classes_asks_for_the_training_images(run, tmp_path, capsys):
    old = without_names(run, tmp_path, "arguments")
    said = fault(capsys, *options(old, f"--images={run.parent / 'photos'}"))
    assert re.search(r"The folder .*insects/train \(training images, one folder per class\) is missing", said)


def empty(folder):
    (folder / "notes.txt").write_text("no image")


def half_an_image(folder):
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    (folder / "cut.png").write_bytes((folder / "red.png").read_bytes()[:60])


def test_damaged_photos_are_named_and_left_out_where_training_skips_them(tmp_path, capsys):
    half_an_image(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "whole.png")
    data = UnlabelledImages(str(tmp_path), like=ImageFolder(damaged="skip"), classes=["ant", "bee"])
    data.setup("predict")
    assert data.predicted == {"file": ["red.png", "whole.png"]}
    assert len(next(iter(data.predict_dataloader())).images) == 2
    assert "cut.png is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (empty, "There is no image in .*photos. The names of image files end in .jpg, .jpeg, .png"),
        (half_an_image, "The image file .*photos/cut.png is damaged"),
        (Path.rmdir, "photos is no folder of images to predict"),
    ],
)
def test_what_cannot_be_predicted_is_told(tmp_path, make, said):
    folder = tmp_path / "photos"
    folder.mkdir()
    make(folder)
    data = UnlabelledImages(str(folder), like=ImageFolder(), classes=["ant", "bee"])

    def predict():
        data.setup("predict")
        return list(data.predict_dataloader())

    with pytest.raises(DataError, match=said):
        predict()


def test_a_network_of_grey_digits_takes_photos(copied, run):
    main(options(copied, f"--images={run.parent / 'photos'}"))
    assert [row["file"] for row in predictions(copied)] == ["a.jpg", "z.jpg", "more/é.jpg"]
    assert {row["class"] for row in predictions(copied)} <= set("0123456789")


def test_a_network_of_points_takes_none(run):
    with pytest.raises(DataError, match="A network trained on Rings takes no images"):
        UnlabelledImages(str(run.parent / "photos"), like=Rings())


def test_where_training_images_were_cropped_at_random_photos_are_not(run):
    like = ImageFolder(image_size=8, random_crop=True)
    images = UnlabelledImages(str(run.parent / "photos"), like=like, classes=["ant"]).load(train=False)
    expected = like.transform(train=False)(read_image(images.file(0)))
    assert np.array_equal(images.__getitems__([0]).images[0], expected)


@pytest.mark.parametrize("first", [True, False])
def test_of_several_processes_the_first_writes_whatever_files_are_called(first, tmp_path):
    file, callback = tmp_path / "new" / "predictions.csv", PredictionsFile(tmp_path / "new" / "predictions.csv")
    data = SimpleNamespace(predicted={"file": [os.fsdecode(b"\xff.jpg")]}, classes=["ant", "bee"])
    callback.on_predict_batch_end(None, None, torch.tensor([[0.25, 0.75]]))
    callback.on_predict_epoch_end(SimpleNamespace(is_global_zero=first, datamodule=data), None)
    assert file.exists() == first
    if first:
        assert file.read_bytes() == b"file,class,probability\r\n\xff.jpg,bee,0.75\r\n"
