"""Frozen features: what every block makes of every image, computed once and kept in memory, or anew in each epoch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, starmap
from typing import Protocol, cast

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datamodules.base import ImageDataModule
from datamodules.batch import Batch
from datamodules.images import Images
from datamodules.loaders import DrawingImages, loader
from experiments.probing.processes import own, shared
from experiments.run.errors import RunError
from models.method import Method


@dataclass(frozen=True)
class Features:
    """Features of some images.

    Attributes:
        kinds: ``block<k>/gap`` (of some methods also ``block<k>/cbe``), or a hidden layer → float32 ``(N, d)``.
        labels: int64 ``(N,)``.
    """

    kinds: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> "Features":
        return Features({kind: values[rows] for kind, values in self.kinds.items()}, self.labels[rows])

    def only(self, kinds: Sequence[str]) -> "Features":
        """Those of some kinds."""
        return Features({kind: self.kinds[kind] for kind in kinds}, self.labels)

    def labelled(self, share: float, held_out: int, seed: int) -> "tuple[Features, Features, Features]":
        """Those to learn from, those held out, and both, if a share has labels: drawn class by class, in their order.

        Args:
            share: of those with labels.
            held_out: how many of all, the last ones, are held out.
            seed: of the drawing.

        Raises:
            RunError: a class would have none, or none would be held out.
        """
        cut = len(self) - held_out
        if share == 1:
            return self[:cut], self[cut:], self
        from sklearn.model_selection import train_test_split  # takes half a second to import

        order, labels = np.arange(len(self)), self.labels.cpu().numpy()
        try:
            drawn, _ = train_test_split(order, train_size=share, random_state=seed, stratify=labels)
        except ValueError as fault:
            raise RunError(
                f"{share:g} of {len(self)} labels do not reach for each class: choose larger --label_shares."
            ) from fault
        rows = torch.from_numpy(np.sort(drawn))
        if rows[-1] < cut:
            raise RunError(
                f"Of {share:g} of the {len(self)} labels, {len(drawn)}, none is held out to choose a learning rate on: "
                "choose larger --label_shares."
            )
        return self[rows[rows < cut]], self[rows[rows >= cut]], self[rows]

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator["Features"]:
        """All of them once, in a random order, in batches of which a last, smaller one is kept."""
        return (self[rows] for rows in torch.randperm(len(self), generator=generator).split(batch_size))

    def near(self, device: torch.device) -> "Features":
        """On the GPU if they take at most half of its free memory; else where they are."""
        size = sum(values.nbytes for values in self.kinds.values())
        if device.type != "cuda" or size > torch.cuda.mem_get_info(device)[0] / 2:
            return self
        return Features({kind: values.to(device) for kind, values in self.kinds.items()}, self.labels.to(device))


class Examples(Protocol):
    """What a linear classifier learns from: :class:`Features`, or :class:`AugmentedFeatures`."""

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[Features]:
        """All of them once, in a random order, in batches of which a last, smaller one is kept."""


Compute = Callable[[Tensor], dict[str, Tensor]]
"""Images ``(B, C, H, W)`` → kind of features → values ``(B, …)``."""


@dataclass(frozen=True)
class Standardisation:
    """Every feature minus its mean, over its standard deviation; features that are always the same become 0.

    Attributes:
        means: kind of features → ``(d,)``.
        deviations: kind of features → ``(d,)``; 1 for a feature that is always the same.
    """

    means: dict[str, Tensor]
    deviations: dict[str, Tensor]

    @classmethod
    def of(cls, features: Features) -> "Standardisation":
        """That which gives these features mean 0 and standard deviation 1."""
        found = {kind: torch.std_mean(values, dim=0, correction=0) for kind, values in features.kinds.items()}
        constant = {kind: std <= 1e-6 * mean.abs() for kind, (std, mean) in found.items()}  # but for rounding
        deviations = {kind: std.masked_fill(constant[kind], 1.0) for kind, (std, _) in found.items()}
        return cls({kind: mean for kind, (_, mean) in found.items()}, deviations)

    def apply(self, features: Features) -> None:
        """Standardise features in place: of a large data set they take gigabytes."""
        for kind, values in features.kinds.items():
            mean, deviation = self._near(kind, values)
            values.sub_(mean).div_(deviation)

    def after(self, compute: Compute) -> Compute:
        """What computes features and standardises them."""

        def computed(images: Tensor) -> dict[str, Tensor]:
            found = {kind: (values, *self._near(kind, values)) for kind, values in compute(images).items()}
            return {kind: (values - mean) / deviation for kind, (values, mean, deviation) in found.items()}

        return computed

    def _near(self, kind: str, values: Tensor) -> tuple[Tensor, Tensor]:
        return self.means[kind].to(values.device), self.deviations[kind].to(values.device)


Part = tuple[dict[str, Tensor], Tensor]
"""Of a batch: kind of features → values ``(B, …)``; labels ``(B,)``."""


@dataclass(frozen=True)
class AugmentedFeatures:
    """Features of images that are augmented anew in every epoch, as the data module does it for training.

    Attributes:
        images: as training loads them.
        data: what augments and normalises them.
        device: where to.
        compute: what makes their features.
    """

    images: Images
    data: ImageDataModule
    device: torch.device
    compute: Compute

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[Features]:
        """All images once, in a random order; loading and augmentation of a batch draw from two seeds of its own."""
        order = torch.randperm(len(self.images), generator=generator).split(batch_size)
        seeds = torch.randint(2**62, (len(order), 2), generator=generator).tolist()
        yield from starmap(Features, shared([*zip(order, seeds, strict=True)], self._made))

    def _made(self, seeded: Sequence[tuple[Tensor, list[int]]]) -> Iterator[Part]:
        asked = [(indices, of_loading) for indices, (of_loading, _) in seeded]
        batches = loader(DrawingImages(self.images), asked, self.data.num_workers)
        for (_, (_, seed)), batch in zip(seeded, batches, strict=True):
            torch.manual_seed(seed)
            ready = self.data.training_batch(move_data_to_device(batch, self.device))
            yield self.compute(ready.images), ready.labels


@dataclass(frozen=True)
class Splits:
    """The images of a data set, un-augmented and in a fixed order, and the data module, which normalises them."""

    data: ImageDataModule
    train: Images
    val: Images
    test: Images

    @classmethod
    def of(cls, data: ImageDataModule) -> "Splits":
        """Read the data set; validation is held out of the training split, even if the run validated on the test split.

        Raises:
            DataError: a file is missing or damaged.
        """
        data.validate_on_test, data.views = False, None  # views are for training without labels
        data.prepare_data()
        data.setup("fit")
        data.setup("test")
        val, test = images_of(data.val_dataloader()), images_of(data.test_dataloader())
        return cls(data, data.training_images.for_evaluation(), val, test)

    def augmented(self, device: torch.device, compute: Compute) -> tuple[AugmentedFeatures, AugmentedFeatures]:
        """What ``compute`` makes of augmented images: of those for training, of these and those for validation."""
        images = self.data.training_images, self.data.known_images
        train, known = (AugmentedFeatures(some, self.data, device, compute) for some in images)
        return train, known

    def shuffled(self, device: torch.device) -> Iterator[Batch]:
        """The training images in batches of the run's size, as evaluation gets them, in an order drawn with the seed.

        A last, smaller batch is left out, unless it is the only one. Of several processes each gets its own batches.
        """
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.data.seed))
        batches = order.split(self.data.batch_size)
        whole = [batch for batch in batches if len(batch) == len(batches[0])]
        for batch in loader(self.train, own(whole), self.data.num_workers):
            yield self.data.evaluation_batch(move_data_to_device(batch, device))

    def some(self, count: int) -> "Splits":
        """At most so many images of each split, drawn at random with the seed of the data, in their order."""
        train, val, test = (draw(split, count, self.data.seed) for split in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)

    def read(self, splits: Sequence[Dataset[Batch]], device: torch.device, compute: Compute) -> Features:
        """What ``compute`` makes of the images of some splits, un-augmented; those follow each other in the result.

        It stays in memory: 4 bytes × images × Σ d, for ImageNet and all four blocks of a ResNet-50
        (d = 256 + 512 + 1024 + 2048) 20 GB; of several processes in that of each.
        """
        sizes = [len(split) for split in splits]  # type: ignore[arg-type]
        orders = [torch.arange(size).split(self.data.batch_size) for size in sizes]

        def made(split: Dataset[Batch], order: Sequence[Tensor]) -> Iterator[Part]:
            return _made(loader(split, order, self.data.num_workers), self.data, device, compute)

        parts = (shared(order, partial(made, split)) for split, order in zip(splits, orders, strict=True))
        return _kept(chain.from_iterable(parts), sum(sizes))


def images_of(loader: DataLoader) -> Images:
    """The split that a loader of a data module loads."""
    return cast(Images, loader.dataset)


def draw(split: Images, count: int, seed: int) -> Images:
    """At most ``count`` images of a split, drawn at random, in their order."""
    drawn = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    return split.subset(drawn.sort().values)


def read(
    batches: Iterable[Batch], count: int, data: ImageDataModule, device: torch.device, compute: Compute
) -> Features:
    """What ``compute`` makes of ``count`` images, un-augmented, which come in batches from a loader; kept in memory."""
    return _kept(_made(batches, data, device, compute), count)


def _made(batches: Iterable[Batch], data: ImageDataModule, device: torch.device, compute: Compute) -> Iterator[Part]:
    for batch in batches:
        # Not by the data module's own hook: that augments while a Trainer is training.
        ready = data.evaluation_batch(move_data_to_device(batch, device))
        with torch.no_grad():
            found = compute(ready.images)
        yield found, batch.labels


def _kept(parts: Iterable[Part], count: int) -> Features:
    kinds: dict[str, Tensor] = {}
    labels, done = torch.empty(count, dtype=torch.int64), 0
    for found, of_them in parts:
        rows = slice(done, done := done + len(of_them))
        labels[rows] = of_them
        for kind, values in found.items():
            if kind not in kinds:
                kinds[kind] = torch.empty(count, *values.shape[1:])
            kinds[kind][rows] = values
    return Features(kinds, labels)


def block_reader(model: Method, blocks: Sequence[int]) -> Compute:
    """What makes the features of some blocks, counted from 1, in evaluation mode and float32.

    Blocks behind the last of them are not computed. The model's weights and statistics are only read.
    """
    model.eval().requires_grad_(False)
    wanted = {f"block{k}" for k in blocks}

    @torch.no_grad()
    def compute(images: Tensor) -> dict[str, Tensor]:
        found = model.block_features(images, last=max(blocks))
        return {kind: values for kind, values in found.items() if kind.partition("/")[0] in wanted}

    return compute


def of_kinds(compute: Compute, kinds: Sequence[str]) -> Compute:
    """What computes some kinds of features alone."""

    def computed(images: Tensor) -> dict[str, Tensor]:
        found = compute(images)
        return {kind: found[kind] for kind in kinds}

    return computed


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, a model is in evaluation mode; after that every module is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
