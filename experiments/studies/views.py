"""Image pairs per second of the views of self-supervised methods: lightly's way and in batches.

    python -m experiments.studies.views --repetitions 7

Random images, one thread, the settings published for CIFAR and the same with all that ImageNet's have.
"lightly": one PIL image after the other → float tensors, neither normalised nor stacked. "Batches of n": uint8
batch → normalised channels-last batch, n images at a time (training takes the last column's n). All are timed
in turns; medians.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torch import Tensor

from datamodules.views.batched import CHUNK, BatchedView
from datamodules.views.transforms import BarlowTwinsViews, SimCLRViews, VICRegViews
from experiments.measure.turns import in_turns, median_ratio, seconds
from experiments.run import tables
from experiments.studies.options import set_allocator, timing_parser

RECIPES: dict[str, Callable[[int], MultiViewTransform]] = {
    "SimCLR, CIFAR": partial(SimCLRViews, strength=0.5, blur=0.0),
    "Barlow Twins, CIFAR": partial(BarlowTwinsViews, blur=(0.0, 0.0)),
    "VICReg, CIFAR": partial(VICRegViews, min_scale=0.2, blur=0.0),
    "SimCLR, ImageNet": SimCLRViews,
    "Barlow Twins, ImageNet": BarlowTwinsViews,
    "VICReg, ImageNet": VICRegViews,
}


DEFAULT = f"batches of {CHUNK}"
"""What training takes."""


def per_sample(transform: MultiViewTransform, images: Tensor) -> Callable[[], None]:
    """Both views of every image, one image after the other."""
    pictures = [Image.fromarray(image) for image in images.numpy()]

    def run() -> None:
        for picture in pictures:
            transform(picture)

    return run


def batched(transform: MultiViewTransform, images: Tensor, chunk: int) -> Callable[[], None]:
    """Both views of the batch, a chunk at a time."""
    views = [BatchedView(view, (0.5,) * 3, (0.25,) * 3) for view in transform.transforms]

    def run() -> None:
        for view in views:
            view.render(images, view.draw(images), chunk=chunk)

    return run


def row(recipe: str, images: Tensor, chunks: dict[str, int], repetitions: int) -> list[str]:
    """Image pairs/s of the contenders, each a median, and the default's over lightly's."""
    transform = RECIPES[recipe](images.shape[1])
    contenders = {"lightly": per_sample(transform, images)}
    contenders |= {name: batched(transform, images, chunk) for name, chunk in chunks.items()}
    for run in contenders.values():
        run()
    times = in_turns({name: partial(seconds, run) for name, run in contenders.items()}, repetitions)
    rates = [f"{len(images) / statistics.median(values):,.0f}" for values in times.values()]
    return [recipe, *rates, f"{median_ratio(times['lightly'], times[DEFAULT]):.1f}"]


def main() -> None:
    """Measure the recipes and print one table row each."""
    parser = timing_parser(__doc__, repetitions=7)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES, metavar="NAME")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--chunks", nargs="+", type=int, default=[32, 64, 128, 256, 512], metavar="N")
    options = parser.parse_args()
    set_allocator(options)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(256, (options.batch, options.side, options.side, 3), dtype=torch.uint8)
    chunks = {f"batches of {chunk}": chunk for chunk in sorted({*options.chunks, CHUNK})}
    rows = (row(recipe, images, chunks, options.repetitions) for recipe in options.recipes)
    for line in tables.markdown_lines(["image pairs/s", "lightly", *chunks, f"{DEFAULT} / lightly"], rows):
        print(line, flush=True)


if __name__ == "__main__":
    main()
