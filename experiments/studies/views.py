"""Image pairs per second of the views of self-supervised methods: lightly's way and in batches.

    python -m experiments.studies.views --repetitions 7

Random 32×32 images, one thread, the settings published for CIFAR and the same with all that ImageNet's have.
"lightly": one PIL image after the other → float tensors, neither normalised nor stacked. "Batches of n": uint8
batch → normalised channels-last batch, n images at a time (training takes the last column's n). All are timed
in turns; medians.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torch import Tensor

from datamodules.views.batched import CHUNK, BatchedView, translate
from datamodules.views.transforms import BarlowTwinsViews, SimCLRViews, VICRegViews
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.turns import in_turns, median_ratio, seconds
from experiments.run import tables

RECIPES: dict[str, Callable[[int], MultiViewTransform]] = {
    "SimCLR, CIFAR": partial(SimCLRViews, strength=0.5, blur=0.0),
    "Barlow Twins, CIFAR": partial(BarlowTwinsViews, blur=(0.0, 0.0)),
    "VICReg, CIFAR": partial(VICRegViews, min_scale=0.2, blur=0.0),
    "SimCLR, ImageNet": SimCLRViews,
    "Barlow Twins, ImageNet": BarlowTwinsViews,
    "VICReg, ImageNet": VICRegViews,
}


def per_sample(transform: MultiViewTransform, pictures: Sequence[Image.Image]) -> None:
    """Both views of every image, one image after the other."""
    for picture in pictures:
        transform(picture)


def batched(views: Sequence[BatchedView], images: Tensor, chunk: int) -> None:
    """Both views of the batch, a chunk at a time."""
    for view in views:
        view.render(images, view.draw(images), chunk=chunk)


def row(recipe: str, images: Tensor, chunks: Sequence[int], repetitions: int) -> list[str]:
    """Image pairs/s of the contenders, each a median, and the default's over lightly's."""
    transform = RECIPES[recipe](images.shape[1])
    views = [BatchedView(translate(view), (0.5,) * 3, (0.25,) * 3) for view in transform.transforms]
    contenders = {"lightly": partial(per_sample, transform, [Image.fromarray(image) for image in images.numpy()])}
    contenders |= {str(chunk): partial(batched, views, images, chunk) for chunk in chunks}
    for run in contenders.values():
        run()
    times = in_turns({name: partial(seconds, run) for name, run in contenders.items()}, repetitions)
    rates = [f"{len(images) / statistics.median(values):,.0f}" for values in times.values()]
    return [recipe, *rates, f"{median_ratio(times['lightly'], times[str(CHUNK)]):.1f}"]


def main() -> None:
    """Measure the recipes and print one table row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--chunks", nargs="+", type=int, default=[32, 64, 128, 256, 512], metavar="N")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(256, (options.batch, 32, 32, 3), dtype=torch.uint8)
    chunks = sorted({*options.chunks, CHUNK})
    headings = ["image pairs/s", "lightly", *(f"batches of {n}" for n in chunks), f"batches of {CHUNK} / lightly"]
    for line in tables.markdown_lines(headings, (row(name, images, chunks, options.repetitions) for name in RECIPES)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
