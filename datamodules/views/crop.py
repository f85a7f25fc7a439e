"""The random crop of views, with their flips."""

from dataclasses import dataclass
from math import log
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.files import DataError
from datamodules.views.colour import Range

_TRIES = 10  # of torchvision's RandomResizedCrop, before it falls back to the centre


class CropDraw(NamedTuple):
    """Box ``(B, 4)`` of each image: top, left, height, width in pixels; whether it is mirrored, bool ``(B,)``."""

    box: Tensor
    flip: Tensor
    vertical_flip: Tensor


@dataclass(frozen=True)
class Crop:
    """Random resized crop (Szegedy et al., 2015) and flips, in one bilinear look-up.

    Args:
        size: height and width of the result, in pixels; at least those of the images.
        scale: smallest and largest area of the box, as a share of the image.
        ratio: smallest and largest width / height of the box.
        flip: probability of mirroring left and right.
        vertical_flip: probability of mirroring top and bottom.
    """

    size: tuple[int, int]
    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    flip: float = 0.5
    vertical_flip: float = 0.0

    def draw(self, count: int, height: int, width: int, device: torch.device) -> CropDraw:
        """Boxes by torchvision's rule: the first of ten tries that fits, else the centre.

        Raises:
            DataError: the images are larger than the result: a look-up would alias.
        """
        if self.size[0] < height or self.size[1] < width:
            shown = "×".join(map(str, self.size))
            raise DataError(f"Views of {shown} pixels would reduce images of {height}×{width}: not batched.")
        area = height * width * torch.empty(count, _TRIES, device=device).uniform_(*self.scale)
        aspect = torch.empty(count, _TRIES, device=device).uniform_(*map(log, self.ratio)).exp_()
        heights, widths = (area / aspect).sqrt_().round_(), (area * aspect).sqrt_().round_()
        fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
        first = fits.int().argmax(1, keepdim=True)
        found, (central_height, central_width) = fits.any(1), self._central(height, width)
        heights = torch.where(found, heights.gather(1, first)[:, 0], central_height)
        widths = torch.where(found, widths.gather(1, first)[:, 0], central_width)
        top, left = (
            torch.where(found, _below(room + 1), (room / 2).floor_()) for room in (height - heights, width - widths)
        )
        flips = (torch.rand(count, device=device) < p for p in (self.flip, self.vertical_flip))
        return CropDraw(torch.stack((top, left, heights, widths), 1), *flips)

    def _central(self, height: int, width: int) -> tuple[float, float]:
        """Height and width of the box that is taken if none of the tries fits."""
        narrowest, widest = min(self.ratio), max(self.ratio)
        if width / height < narrowest:
            return float(round(width / narrowest)), float(width)
        if width / height > widest:
            return float(height), float(round(height * widest))
        return float(height), float(width)

    def apply(self, x: Tensor, drawn: CropDraw, strength: float) -> Tensor:
        """Look the boxes up; a weaker box lies between the drawn one and the whole image."""
        height, width = x.shape[2:]
        whole = drawn.box.new_tensor((0, 0, height, width))
        top, left, heights, widths = torch.lerp(whole, drawn.box, strength).split(1, dim=1)
        # Coordinates in two planes: grid_sample's fast path, and no interleaved writing.
        grid = x.new_empty(len(x), 2, *self.size)
        grid[:, 0] = _positions(left, widths, self.size[1], drawn.flip, width).unsqueeze(1)
        grid[:, 1] = _positions(top, heights, self.size[0], drawn.vertical_flip, height).unsqueeze(2)
        return F.grid_sample(x, grid.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def _below(bound: Tensor) -> Tensor:
    """Uniform whole numbers 0 … bound − 1."""
    drawn = (torch.rand_like(bound) * bound).floor_()
    return torch.minimum(drawn, bound - 1)  # the product can round up to the bound


def _positions(start: Tensor, length: Tensor, size: int, flip: Tensor, side: int) -> Tensor:
    """Where the ``size`` pixels of a side are looked up, ``(B, size)`` in grid_sample's −1 … 1."""
    centre = torch.arange(size, device=start.device) + 0.5
    centre = torch.where(flip.unsqueeze(1), size - centre, centre)
    pixel = start + centre * (length / size) - 0.5
    pixel = torch.minimum(torch.maximum(pixel, start), start + length - 1)  # Pillow sees nothing beyond the box
    return (2 * pixel + 1) / side - 1
