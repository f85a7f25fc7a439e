"""How many images a worker reads in a second, and how many workers a GPU needs that trains on so many.

    python -m experiments.studies.input --gpu 2500
    python -m experiments.studies.input --gpu 2500 --images FOLDER

Image files, at --size pixels: decoded, also by torchvision's decoder; with a random crop, as for training with labels;
as pairs of views (Barlow Twins' of ImageNet), made by lightly one image after the other and sent as float32, and
cropped by the worker, sent as uint8 and coloured on the device, here the CPU. Seconds are those of one thread's CPU, in
turns, medians. Without --images the files are random: 500×375 pixels, soft shapes and noise, JPEG of quality 90, 85 kB
each.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np
import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torch import Tensor
from torchvision.io import decode_image
from torchvision.transforms import v2

from datamodules.folders import ImageNet, StreamedImages
from datamodules.unlabelled import UnlabelledImages
from datamodules.views.pairs import DevicePairs, PairedImages
from datamodules.views.transforms import BarlowTwinsViews, Views
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.turns import in_turns
from experiments.run import tables


def write_photos(folder: Path, count: int) -> None:
    """Random JPEG files: a few colours, enlarged, and noise."""
    generator = np.random.default_rng(0)
    for number in range(count):
        shapes = Image.fromarray(generator.integers(256, size=(12, 16, 3), dtype=np.uint8)).resize((500, 375))
        pixels = np.asarray(shapes) + generator.normal(0, 16, (375, 500, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04}.jpg", quality=90)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Seconds of this process's CPU that a piece of work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def by_lightly(images: StreamedImages, transform: MultiViewTransform, data: ImageNet) -> tuple[Tensor, ...]:
    """Both views of all images as float32, normalised by the worker."""
    sides = zip(*(transform(images.picture(index)) for index in range(len(images))), strict=True)
    scaled = (v2.functional.normalize(torch.stack(side), list(data.mean), list(data.std)) for side in sides)
    return tuple(side.contiguous(memory_format=torch.channels_last) for side in scaled)


def cropped(images: StreamedImages, crop: v2.RandomResizedCrop) -> list[np.ndarray]:
    """A random crop of all images."""
    return [np.asarray(crop(images.picture(index))) for index in range(len(images))]


def rows(folder: Path, size: int, gpu: float, repetitions: int) -> Iterator[list[str]]:
    """What is done, images per CPU second, workers that the GPU needs, bytes that travel per image."""
    data = ImageNet(image_size=size)
    images = UnlabelledImages(str(folder), like=data, classes=["any"]).load(train=False)
    views = Views(BarlowTwinsViews)
    pairs = PairedImages(images, views.while_loading(size)).__getitems__(torch.arange(len(images)))
    device, paired = DevicePairs(views, size, data.mean, data.std), PairedImages(images, views.while_loading(size))
    pixels = 3 * size * size
    contenders: dict[str, tuple[Callable[[], object], int]] = {
        "decode": (lambda: [images.picture(index) for index in range(len(images))], 0),
        "decode, by torchvision": (lambda: [decode_image(images.file(i), "RGB") for i in range(len(images))], 0),
        "decode, random crop": (partial(cropped, images, v2.RandomResizedCrop(size)), pixels),
        "pair, by lightly": (partial(by_lightly, images, views.pair_transform(size), data), 2 * 4 * pixels),
        "pair, cropped": (lambda: paired.__getitems__(range(len(images))), 2 * pixels),
        "pair, coloured on the device": (lambda: device(pairs.images), 0),
    }
    for work, _ in contenders.values():
        work()
    times = in_turns({name: partial(cpu_seconds, work) for name, (work, _) in contenders.items()}, repetitions)
    for name, (_, travels) in contenders.items():
        rate = len(images) / statistics.median(times[name])
        workers = f"{ceil(gpu / rate)}" if travels else tables.NOTHING
        yield [name, f"{rate:,.0f}", workers, f"{travels / 2**20:.2f}" if travels else tables.NOTHING]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", type=float, default=1000, help="images, or pairs of views, that it trains on a second")
    parser.add_argument("--images", type=Path, help="folder of image files")
    parser.add_argument("--count", type=int, default=64, help="of random files")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    headings = [
        "a worker's work",
        "images / CPU second",
        f"workers for {options.gpu:,.0f} images/s",
        "MiB sent per image",
    ]
    with tempfile.TemporaryDirectory() as folder:
        if options.images is None:
            write_photos(Path(folder), options.count)
        found = rows(options.images or Path(folder), options.size, options.gpu, options.repetitions)
        for line in tables.markdown_lines(headings, found):
            print(line, flush=True)


if __name__ == "__main__":
    main()
