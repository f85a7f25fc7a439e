"""Images in memory."""

import torch

from datamodules.batch import Batch
from datamodules.images import MemoryImages


def numbered_images():
    """The first pixel of an image is its number."""
    images = torch.zeros(20, 4, 6, 1, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(20)
    return MemoryImages(images, torch.arange(20) * 7 % 4)


def test_a_batch_is_the_images_and_labels_asked_for():
    images = numbered_images()
    batch = images.__getitems__(torch.tensor([7, 3, 7]))
    assert isinstance(batch, Batch)
    assert batch.images[:, 0, 0, 0].tolist() == [7, 3, 7]
    assert batch.labels.tolist() == images.labels[[7, 3, 7]].tolist()


def test_a_subset_of_a_subset_counts_from_its_own_beginning():
    images = numbered_images()
    part = images.subset(torch.arange(10, 20)).subset(torch.tensor([4, 2]))
    assert len(part) == 2
    assert part.__getitems__(torch.tensor([0, 1])).images[:, 0, 0, 0].tolist() == [14, 12]
    assert part.labels.tolist() == images.labels[[14, 12]].tolist()


def test_a_subset_copies_no_images():
    images = numbered_images()
    assert images.subset(torch.arange(5))._images.data_ptr() == images._images.data_ptr()
