"""Corrupted test images."""

import sys
from functools import partial
from statistics import fmean

import numpy as np
import pytest
import torch
from helpers import fault, summary

from datamodules.digits import Digits
from datamodules.images import MemoryImages
from experiments.cli import main
from experiments.probing.corruptions import CorruptedImages, corrupted_accuracy, corruption_names
from experiments.probing.features import Splits, block_reader
from experiments.probing.linear_probe import LinearProbe
from experiments.probing.protocol import Protocol
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.vgg import VGG

imagecorruptions = pytest.importorskip("imagecorruptions", exc_type=ImportError)  # the package is optional
CPU = torch.device("cpu")
COLOUR, GREY = (40, 36, 3), (28, 28, 1)


def smooth(shape, count=3):
    """Images of that shape, whose neighbouring pixels are alike."""
    rows, columns, channels = (torch.linspace(0, 3, side) for side in shape)
    waves = rows.view(-1, 1, 1).cos() + columns.view(1, -1, 1).sin() + channels
    shifted = torch.stack([(waves + n).sin() for n in range(count)])
    return MemoryImages((127 * (1 + shifted)).to(torch.uint8), torch.arange(count))


def corrupted(images, name, severity=3, seed=0, indices=(0, 1, 2)):
    return CorruptedImages(images, name, severity, seed).__getitems__(torch.tensor(indices))


def test_there_are_the_fifteen_of_imagenet_c():
    noise, blur = ["gaussian_noise", "shot_noise", "impulse_noise"], ["defocus", "glass", "motion", "zoom"]
    weather = ["snow", "frost", "fog", "brightness"]
    digital = ["contrast", "elastic_transform", "pixelate", "jpeg_compression"]
    assert corruption_names() == [*noise, *(f"{kind}_blur" for kind in blur), *weather, *digital]


@pytest.mark.parametrize("name", corruption_names())
def test_what_an_image_draws_depends_on_seed_and_image_alone(name):
    """Not on its batch, nor on what was drawn before; and nothing else is drawn otherwise because of it."""
    images = smooth((32, 32, 3))
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    whole = corrupted(images, name)
    assert np.array_equal(np.random.get_state()[1], state)
    np.random.seed(6)
    alone = corrupted(images, name, indices=[2])
    assert torch.equal(alone.images[0], whole.images[2])
    assert whole.labels.tolist() == [0, 1, 2]
    assert not torch.equal(whole.images, images.__getitems__([0, 1, 2]).images)
    if name.endswith("_noise"):
        assert not torch.equal(corrupted(images, name, seed=1).images, whole.images)
        twins = MemoryImages(images.__getitems__([0, 0]).images, torch.zeros(2, dtype=torch.int64))
        assert not torch.equal(*corrupted(twins, name, indices=[0, 1]).images)


@pytest.mark.parametrize("shape", [COLOUR, GREY])
def test_severity_and_strength_are_the_packages_own_at_every_size(shape):
    """Gaussian noise of standard deviation 0.08 … 0.38, as on ImageNet-C, in the middle of the range of values."""
    grey = MemoryImages(torch.full((20, *shape), 128, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64))
    for severity, sigma in ((1, 0.08), (2, 0.12), (5, 0.38)):
        noisy = corrupted(grey, "gaussian_noise", severity, indices=range(20)).images
        assert noisy.shape == (20, *shape)
        assert noisy.dtype == torch.uint8
        share = (noisy.float() - 128).abs().lt(255 * sigma).float().mean()
        assert float(share) == pytest.approx(0.683, abs=0.02)  # within one standard deviation


def test_small_images_are_mirrored_to_the_smallest_size_and_cut_out_in_the_middle(monkeypatch):
    given = []
    images = smooth(GREY)

    def only_green(image, **_):
        given.append(image)
        return np.pad(image, [(0, 0), (0, 0), (1, 1)])

    monkeypatch.setattr(imagecorruptions, "corrupt", only_green)
    found = corrupted(images, "fog", indices=[1])
    assert torch.equal(found.images, images.__getitems__([1]).images)
    image = images.__getitems__([1]).images[0].numpy()
    assert given[0].shape == (32, 32, 1)
    assert np.array_equal(given[0], np.pad(image, [(2, 2), (2, 2), (0, 0)], mode="symmetric"))


def test_accuracy_is_the_mean_over_severities_then_corruptions(monkeypatch):
    """Severity s of the n-th corruption leaves a share of s / 10 + n / 100 right."""
    seen = []

    class Counted(CorruptedImages):
        def __init__(self, images, corruption, severity, seed):
            super().__init__(images, corruption, severity, seed)
            seen.append((corruption, severity, seed))

    monkeypatch.setattr("experiments.probing.corruptions.CorruptedImages", Counted)
    names = corruption_names()
    linear = LinearProbe({"block1/gap": 8}, {"block1/gap": [0.1]}, 10, CPU, Protocol())
    monkeypatch.setattr(linear, "accuracy", lambda features: {"block1/gap": [shares[seen[-1][:2]]]})
    shares = {(name, s): s / 10 + n / 100 for n, name in enumerate(names) for s in range(1, 6)}
    model, data = DecoupledGreedy(partial(VGG, plan=(8, "M", 8)), (1, 8, 8), 10, 2), Digits(seed=3)
    splits = Splits.of(data).some(1)
    found = corrupted_accuracy(linear, splits.test, splits, CPU, block_reader(model, [1]))
    assert seen == [(name, s, 3) for name in names for s in range(1, 6)]
    for n, name in enumerate(names):
        assert found[f"block1/gap/corrupted/{name}/top1"] == pytest.approx(0.3 + n / 100)
    assert found["block1/gap/corrupted/top1"] == pytest.approx(0.37)
    assert len(found) == 16


def test_the_probe_judges_corrupted_test_images_beside_clean_ones(copied, capsys):
    options = [f"--checkpoint={copied}", "--epochs=2", "--k=5", "--blocks=[4]", "--corrupted_images=2"]
    main(["probe", *options])
    name = "probe_lin2/block4/gap"
    metrics = {key: value for key, value in summary(copied)["metrics"].items() if "/corrupted/" in key}
    assert set(metrics) == {f"{name}/corrupted/{c}/top1" for c in corruption_names()} | {f"{name}/corrupted/top1"}
    assert "corrupted" in capsys.readouterr().out
    mean = metrics.pop(f"{name}/corrupted/top1")
    assert mean == pytest.approx(fmean(metrics.values()))
    assert {round(10 * share, 6) % 1 for share in metrics.values()} == {0}  # ten judgements each, of two images


def test_a_missing_package_is_told_before_anything_is_computed(copied, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    monkeypatch.setattr("experiments.probing.probe.block_reader", lambda *_: pytest.fail("something was computed"))
    said = fault(capsys, "probe", f"--checkpoint={copied}", "--epochs=2", "--k=5", "--corrupted_images=3")
    assert "pip install imagecorruptions-imaug" in said
