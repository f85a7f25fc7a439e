"""``load``: a trained network in a script."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CONFIGS, fit
from PIL import Image
from test_load_from_checkpoint import QUICK, SHY, last, saved

from datamodules.digits import Digits
from datamodules.toys import Checkerboard
from experiments.run.errors import RunError
from experiments.run.trained import TrainedNetwork, load
from losses.errors import UsageError

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    data.setup("test")
    return next(iter(data.test_dataloader()))


def test_a_trained_network_is_used_as_the_page_says(copied, monkeypatch):
    pytest.importorskip("safetensors", exc_type=ImportError)  # the package is optional
    monkeypatch.chdir(copied.parent)
    (copied.parent / "runs").mkdir()
    copied.rename("runs/RUN")
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save("photo.png")
    names = {}
    for block in re.findall(r"^```python\n(.+?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(block, names)
    network, images = names["network"], names["images"]
    assert images.dtype == torch.uint8
    exported = torch.export.load("network.pt2").module()
    torch.testing.assert_close(exported(images[:5]), network(images[:5]))
    assert list(names["features"]) == [f"block{k}/gap" for k in range(1, 5)]
    torch.testing.assert_close(names["maps"].mean(dim=(2, 3)), names["features"]["block4/gap"])
    assert names["model"].clip == 1.0
    assert network.classes == [str(digit) for digit in range(10)]
    assert names["best"] in range(10)
    before = load("runs/RUN")
    assert not torch.equal(before(images), network(images))  # fine-tuned
    assert torch.equal(before(images), names["logits"])  # of the method alone


EXPORTED = [
    "channel_goodness",
    "forward_forward",
    "forward_forward_hybrids",
    "infopro",
    "neuron_groups",
    "predsim",
    "semi_supervised_equilibrium",
]


@pytest.mark.parametrize("method", EXPORTED)
def test_every_method_that_predicts_classes_is_exported_for_batches_of_any_size(method, builder):
    builder.build(CONFIGS / method / "digits.yaml")
    network = TrainedNetwork(builder.model, builder.datamodule.mean, builder.datamodule.std).eval()
    images = torch.zeros(4, 8, 8, 1, dtype=torch.uint8, device="meta")
    exported = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert exported(torch.zeros(7, 8, 8, 1, dtype=torch.uint8, device="meta")).shape == (7, 10)


@pytest.mark.parametrize("method", ["closed_form", "neuron_groups"])
def test_it_predicts_what_the_run_predicts(method, tmp_path, digits):
    options = {"closed_form": ("--trainer.max_epochs=2", "--model.widths=[20]")}.get(method, ())
    folder = fit(tmp_path, *QUICK, *options, config=CONFIGS / method / "digits.yaml")
    network = load(folder)
    assert not any(part.training for part in network.modules())
    normalised = Digits().normalised(digits.images)
    assert torch.equal(network(digits.images), network.model(normalised))


def test_floats_are_taken_for_shares_of_white(tmp_path, digits):
    network = load(fit(tmp_path, *QUICK))
    torch.testing.assert_close(network(digits.images.float() / 255), network(digits.images))


def test_points_are_taken_as_they_are(tmp_path):
    folder = fit(tmp_path, "--trainer.max_epochs=1", config=CONFIGS / "backprop" / "checkerboard.yaml")
    data = Checkerboard()
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    network = load(folder)
    assert torch.equal(network(batch.images), network.model(batch.images.permute(0, 3, 1, 2)))


def test_a_network_without_labels_has_features(tmp_path, digits):
    folder = fit(tmp_path, *QUICK, config=CONFIGS / "blockwise_ssl" / "digits.yaml")
    network = load(str(last(folder)))
    with pytest.raises(UsageError, match=r"BlockwiseSSL predicts no classes: ask for its features\(images\)\."):
        network(digits.images)
    features = network.features(digits.images[:3])
    assert {name: len(z) for name, z in features.items()} == {
        f"block{k}/{kind}": 3 for k in (1, 2, 3, 4) for kind in ("gap", "cbe")
    }


def test_what_cannot_be_loaded_is_told(finished, tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"There is no run .*nowhere"):
        load(tmp_path / "nowhere")
    content = saved(last(finished))
    del content["image_mean"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(RunError, match="was written by an earlier version, without image_mean: train"):
        load(tmp_path / "old.ckpt")
    (tmp_path / "shy.py").write_text(SHY)
    monkeypatch.syspath_prepend(tmp_path)
    folder = fit(tmp_path / "runs", *QUICK, "--model=shy.Shy")
    assert load(folder).model.shyness == 0.5
    del sys.modules["shy"]
    with pytest.raises(UsageError, match=r"last.ckpt is a checkpoint of Shy: import Shy from shy first\."):
        load(folder)


def test_images_of_another_form_are_told(finished):
    network = load(finished)
    for images in (torch.zeros(1, 1, 8, 8), torch.zeros(8, 8, 1), torch.zeros(2, 9, 9, 1), [[1.0]]):
        with pytest.raises(UsageError, match=r"takes a tensor of images \(B, 8, 8, 1\), not"):
            network(images)
