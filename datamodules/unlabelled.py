"""Image files without labels, for a trained network to name their classes."""

import os
from collections.abc import Sequence

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from typing_extensions import override

from datamodules.base import ImageDataModule
from datamodules.files import DataError, note
from datamodules.folders import StreamedImages, in_one_array, read_image


class UnlabelledImages(ImageDataModule):
    """The image files of a folder and its subfolders, in the form of the images that a network was trained on.

    They are resized (shorter side, then the centre) and normalised as those, whose files are not needed. A damaged one
    ends the command, or is named and left out if ``like`` skips those.

    Args:
        images: the folder.
        like: the data that the network was trained on.
        classes: their names, in the order of the labels; by default ``like`` is asked.

    Raises:
        DataError: there is no such folder, no image file in it, or the network was not trained on images.
    """

    def __init__(self, images: str, like: ImageDataModule, classes: Sequence[str] = ()) -> None:
        super().__init__(root=images, batch_size=like.batch_size, num_workers=like.num_workers)
        if like.image_shape[0] not in (1, 3):
            raise DataError(f"A network trained on {like.name} takes no images, grey or in colour.")
        self.image_shape, self.mean, self.std = like.image_shape, like.mean, like.std
        self._classes, self._transform = classes or like.classes, like.transform(train=False)
        self.num_classes = len(self._classes)
        self._skip_damaged = getattr(like, "skip_damaged", False)

    @property
    @override
    def classes(self) -> Sequence[str]:
        return self._classes

    @override
    def load(self, train: bool) -> StreamedImages:
        """All image files, folder by folder."""
        if not os.path.isdir(self.root):
            raise DataError(f"{self.root} is no folder of images to predict.")
        try:
            found = make_dataset(self.root, {"": 0}, extensions=IMG_EXTENSIONS)  # one class: the folder itself
        except FileNotFoundError as fault:
            raise DataError(
                f"There is no image in {self.root}. The names of image files end in {', '.join(IMG_EXTENSIONS)}."
            ) from fault
        paths = [file for file, _ in found if not self._skip_damaged or _is_readable(file)]
        self._names = [os.path.relpath(file, self.root) for file in paths]
        files = in_one_array(paths)
        return StreamedImages(files, torch.zeros(len(files), dtype=torch.int64), self._transform, self._transform)

    @property
    @override
    def predicted(self) -> dict[str, Sequence[str]]:
        return {"file": self._names}


def _is_readable(file: str) -> bool:
    try:
        read_image(file)
    except DataError as fault:
        note(f"{fault} It is left out.")
        return False
    return True
