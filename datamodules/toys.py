"""Toy tasks: points of a known rule, drawn anew for every seed. They need no files."""

from collections.abc import Sequence

import numpy as np
import torch
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.files import DataError
from datamodules.images import MemoryImages
from ranges import NonNegativeInt, PositiveInt, Share


class Toys(ImageDataModule):
    """Base of the toy tasks: two classes of points, float32, which a network sees as "images" ``(d, 1, 1)``.

    A subclass draws the points. They are what the run's seed makes them, training and test split each by a random
    stream of its own. 500 points, of which 100 are held out for validation, leave the 400 training points of the
    small study that the tasks come from (the suite's own; no published data).

    Args:
        points: drawn for training and validation together, at least 2.
        test_points: drawn for the test split.
        seed: seed of points and shuffling; the command line links it to ``seed_everything``.

    Raises:
        DataError: too few points, or a share of validation or batch size that is none.
    """

    num_classes = 2
    image_shape = (2, 1, 1)
    mean: Sequence[float] = (0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0)
    dtype = torch.float32

    def __init__(
        self,
        batch_size: PositiveInt = 32,
        points: PositiveInt = 500,
        test_points: PositiveInt = 2000,
        validation: Share = 0.2,
        validate_on_test: bool = False,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, validation=validation, validate_on_test=validate_on_test, seed=seed)
        if min(points, test_points) < 2:
            raise DataError(f"A toy task needs at least 2 points per split, not {min(points, test_points)}.")
        self.points = {True: points, False: test_points}

    def draw(self, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points ``(count, d)`` and their labels ``(count,)``, 0 or 1."""
        raise NotImplementedError(f"{type(self).__name__} must implement draw(count, random).")

    @override
    def load(self, train: bool) -> MemoryImages:
        """Draw the training or test split."""
        points, labels = self.draw(self.points[train], np.random.default_rng([self.seed, 0 if train else 1]))
        return MemoryImages(torch.from_numpy(points).float()[:, None, None, :], torch.from_numpy(labels).long())


class Checkerboard(Toys):
    """Uniform points of the square [−2, 2]², labelled as the 4 × 4 fields of a chessboard: (⌊x⌋ + ⌊y⌋) mod 2."""

    def draw(self, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points and the colours of their fields."""
        points = random.uniform(-2, 2, (count, 2))
        return points, np.floor(points).sum(axis=1).astype(int) % 2


class Rings(Toys):
    """Six rings of radius ⅓, ⅔, … 2 with alternating labels; Gaussian noise of 0.05 on both coordinates."""

    def draw(self, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points, as many of each ring on average, and their rings' labels."""
        ring = random.integers(6, size=count)
        points = _polar((ring + 1) / 3, random.uniform(0, 2 * np.pi, count))
        return points + random.normal(0, 0.05, points.shape), ring % 2


class Spirals(Toys):
    """Two interlaced spirals of 1¾ turns and radius 2; Gaussian noise of 0.05 on both coordinates."""

    def draw(self, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points, about evenly spread along the arms, and their arms."""
        way, arm = np.sqrt(random.uniform(0, 1, count)), random.integers(2, size=count)
        points = _polar(2 * way, 2 * np.pi * 1.75 * way + np.pi * arm)
        return points + random.normal(0, 0.05, points.shape), arm


class NoisyProducts(Toys):
    """Standard normal points in 20 dimensions, labelled [x₁·x₂ > 0]; a tenth of the labels is flipped, in both splits.

    No rule predicts more than 90 % of the test split.
    """

    image_shape = (20, 1, 1)
    mean = (0.0,) * 20
    std = (1.0,) * 20

    def draw(self, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Points and noisy labels."""
        points = random.normal(size=(count, 20))
        flipped = random.uniform(size=count) < 0.1
        return points, (points[:, 0] * points[:, 1] > 0) ^ flipped


def _polar(radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
