"""Image pairs per second of the views of self-supervised methods: lightly's way and in batches.

    python -m experiments.studies.views --repetitions 7

Random images, one thread, the settings published for CIFAR and the same with all that ImageNet's have.
"lightly": one PIL image after the other → float tensors, neither normalised nor stacked. "Batches of n": uint8
batch → normalised channels-last batch, n images at a time (training takes the last column's n). All are timed
in turns; medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from PIL import Image
from torch import Tensor

from datamodules.views.batched import CHUNK, BatchedView
from datamodules.views.transforms import BarlowTwinsViews, SimCLRViews, VICRegViews
from experiments.measure.allocator import keep_freed_memory

RECIPES: dict[str, Callable[[int], MultiViewTransform]] = {
    "SimCLR, CIFAR": partial(SimCLRViews, strength=0.5, blur=0.0),
    "Barlow Twins, CIFAR": partial(BarlowTwinsViews, blur=(0.0, 0.0)),
    "VICReg, CIFAR": partial(VICRegViews, min_scale=0.2, blur=0.0),
    "SimCLR, ImageNet": SimCLRViews,
    "Barlow Twins, ImageNet": BarlowTwinsViews,
    "VICReg, ImageNet": VICRegViews,
}


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


def rates(contenders: dict[str, Callable[[], None]], count: int, repetitions: int) -> dict[str, list[float]]:
    """Image pairs/s of every repetition, the contenders in turns."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(repetitions):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            measured[name].append(count / (time.perf_counter() - start))
    return measured


def main() -> None:
    """Measure the recipes and print one table row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES, metavar="NAME")
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--chunks", nargs="+", type=int, default=[32, 64, 128, 256, 512], metavar="N")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument(
        "--default_allocator", action="store_true", help="let the C library give memory back; no command does so"
    )
    options = parser.parse_args()
    if not options.default_allocator:
        keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randint(256, (options.batch, options.side, options.side, 3), dtype=torch.uint8)
    default = f"batches of {CHUNK}"
    batches = {f"batches of {chunk}": chunk for chunk in sorted({*options.chunks, CHUNK})}
    headings = ("image pairs/s", "lightly", *batches, f"{default} / lightly")
    print("| " + " | ".join(headings) + " |\n" + "|---" * len(headings) + "|")
    for recipe in options.recipes:
        transform = RECIPES[recipe](options.side)
        contenders = {"lightly": per_sample(transform, images)}
        contenders |= {name: batched(transform, images, chunk) for name, chunk in batches.items()}
        measured = rates(contenders, options.batch, options.repetitions)
        medians = {name: statistics.median(values) for name, values in measured.items()}
        ratio = statistics.median(a / b for a, b in zip(measured[default], measured["lightly"], strict=True))
        figures = [f"{medians[name]:,.0f}" for name in contenders]
        print("| " + " | ".join([recipe, *figures, f"{ratio:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
