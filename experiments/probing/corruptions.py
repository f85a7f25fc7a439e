"""Corrupted test images: the 15 corruptions of ImageNet-C, each at 5 severities.

D. Hendrycks, T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019
(arXiv 1903.12261), as the package ``imagecorruptions-imaug`` draws them on images of any size. The strengths are those
of ImageNet-C at every size; CIFAR-10-C has weaker ones of its own.
"""

import inspect
from functools import partial
from statistics import fmean
from types import ModuleType

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import Dataset

from datamodules.batch import Batch
from datamodules.images import Images, Indices
from datamodules.loaders import mix
from experiments.probing.features import Compute, Splits
from experiments.probing.linear_probe import LinearProbe
from experiments.run.errors import RunError

_SEVERITIES = range(1, 6)
_SMALLEST = 32  # side of an image, in pixels, that the package takes


def _package() -> ModuleType:
    """The package, which is optional.

    Raises:
        RunError: it is not installed, or OpenCV, which it needs, does not load.
    """
    try:
        import imagecorruptions
    except ImportError as fault:
        raise RunError(f"Corrupted images need a package ({fault}): pip install imagecorruptions-imaug.") from fault
    return imagecorruptions


def corruption_names() -> list[str]:
    """``gaussian_noise`` … ``jpeg_compression``; :class:`RunError` if the package is missing."""
    return _package().get_corruption_names()


class CorruptedImages(Dataset[Batch]):
    """Images with one corruption, which draws the same for an image whatever its batch.

    Images of less than 32 pixels are mirrored at their borders up to that size, corrupted, and cut out again. A grey
    image is corrupted as a colour one, of which the green channel is kept: the mean of the channels would halve the
    variance of noise, and more.

    Args:
        images: un-augmented.
        corruption: one of :func:`corruption_names`.
        severity: 1 … 5.
        seed: of what is drawn.
    """

    def __init__(self, images: Images, corruption: str, severity: int, seed: int) -> None:
        package = _package()
        self._images, self._seed = images, seed
        self._corrupt = partial(package.corrupt, severity=severity, corruption_name=corruption)
        # Two of them draw from generators of their own.
        self._takes_seed = "seed" in inspect.signature(package.corruption_dict[corruption]).parameters

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, indices: Indices) -> Batch:
        batch = self._images.__getitems__(indices)
        with isolate_rng(include_cuda=False):  # the package draws from numpy's global generator
            images = [self._corrupted(one, int(i)) for one, i in zip(batch.images.numpy(), indices, strict=True)]
        return batch._replace(images=torch.from_numpy(np.stack(images)))

    def _corrupted(self, image: np.ndarray, index: int) -> np.ndarray:
        """uint8 ``(H, W, C)`` → the same, corrupted."""
        height, width, channels = image.shape
        (top, _), (left, _) = margins = [_margins(height), _margins(width)]
        mirrored = np.pad(image, [*margins, (0, 0)], mode="symmetric")
        seed = mix(self._seed, index) % 2**32
        np.random.seed(seed)
        corrupted = self._corrupt(mirrored, **({"seed": seed} if self._takes_seed else {}))  # (…, …, 3)
        kept = slice(1, 2) if channels == 1 else slice(None)
        return corrupted[top : top + height, left : left + width, kept]


def _margins(side: int) -> tuple[int, int]:
    """Pixels to add before and behind a side that is too short."""
    missing = max(_SMALLEST - side, 0)
    return missing // 2, missing - missing // 2


def corrupted_accuracy(
    linear: LinearProbe, images: Images, splits: Splits, device: torch.device, compute: Compute
) -> dict[str, float]:
    """Accuracy, 0 … 1, of classifiers that learned from the features of clean images, on corrupted ones.

    Returns:
        ``<kind>/corrupted/<corruption>/top1`` → mean over the severities; ``<kind>/corrupted/top1`` → mean of these.
    """
    names = corruption_names()
    found: dict[str, float] = {}
    for name in names:
        shares: dict[str, list[float]] = {kind: [] for kind in linear.rates}
        for severity in _SEVERITIES:
            corrupted = CorruptedImages(images, name, severity, splits.data.seed)
            for kind, [share] in linear.accuracy(splits.read([corrupted], device, compute)).items():
                shares[kind].append(share)
        found |= {f"{kind}/corrupted/{name}/top1": fmean(values) for kind, values in shares.items()}
    means = {kind: fmean(found[f"{kind}/corrupted/{name}/top1"] for name in names) for kind in linear.rates}
    return found | {f"{kind}/corrupted/top1": mean for kind, mean in means.items()}
