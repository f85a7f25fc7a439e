"""Augmentation of whole batches of uint8 images, on whatever device they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.files import DataError
from ranges import NonNegativeInt


@dataclass
class Augment:
    """Random changes to training images; every image of a batch draws its own.

    Not used where a data module has ``views``: these bring their own.

    Args:
        pad: pixels of padding on each side, of which a random crop of the old size is taken; 0 for none.
        padding: what the padding shows: ``zero`` (black) or ``reflect`` (the mirrored image).
        flip: mirror half of the images horizontally; ``alternate``: which, is drawn once, and in every other epoch it
            is the other half (Jordan, 2024), so that two epochs show each image once in each orientation.
        cutout: side of a square set to the mean colour at a random place (DeVries & Taylor, 2017); 0 for none.
    """

    pad: NonNegativeInt = 0
    padding: Literal["zero", "reflect"] = "zero"
    flip: bool | Literal["alternate"] = False
    cutout: NonNegativeInt = 0


def augment_batch(images: Tensor, options: Augment, mirrored: Tensor | None = None) -> Tensor:
    """Pad-and-crop and flip a batch ``(B, H, W, C)`` of uint8 images; same shape and type back.

    One gather does crop, reflection and flip at once: each pixel of the result is looked up at its
    (row, column) in the source.

    Args:
        images: the batch.
        options: how to change it.
        mirrored: which images to mirror, bool ``(B,)``, where that is not drawn here.

    Raises:
        DataError: padding as wide as the image.
    """
    if not options.pad and not options.flip:
        return images
    batch, height, width, channels = images.shape
    device, pad = images.device, options.pad
    if pad >= min(height, width):
        raise DataError(f"Images of {height}×{width} pixels cannot be padded {pad} pixels wide: lower augment.pad.")
    rows = torch.arange(height, device=device).expand(batch, height)
    columns = torch.arange(width, device=device).expand(batch, width)
    if options.flip:
        flipped = torch.rand(batch, 1, device=device) < 0.5 if mirrored is None else mirrored.view(batch, 1)
        columns = torch.where(flipped, width - 1 - columns, columns)
    if pad:
        rows = rows + torch.randint(2 * pad + 1, (batch, 1), device=device)
        columns = columns + torch.randint(2 * pad + 1, (batch, 1), device=device)
        if options.padding == "reflect":
            rows, columns = _reflected(height, pad, device)[rows], _reflected(width, pad, device)[columns]
        else:
            images = F.pad(images, (0, 0, pad, pad, pad, pad))
    source_height, source_width = images.shape[1:3]
    first = torch.arange(batch, device=device).view(batch, 1, 1) * (source_height * source_width)
    pixels = first + rows.unsqueeze(2) * source_width + columns.unsqueeze(1)
    return images.reshape(-1, channels).index_select(0, pixels.view(-1)).view(batch, height, width, channels)


def _reflected(side: int, pad: int, device: torch.device) -> Tensor:
    """Position in the padded image → position in the image, mirrored at the border pixel."""
    position = torch.arange(-pad, side + pad, device=device).abs()
    return torch.where(position < side, position, 2 * (side - 1) - position)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(B, H, W, C)`` → ``(B, C, H, W)`` in channels-last memory: float32, (x − mean) / std, of uint8 x / 255."""
    batch, height, width, channels = images.shape
    white = 255 if images.dtype == torch.uint8 else 1
    # One factor per pixel and channel of a row: six times as fast on a CPU as one per channel.
    scale = torch.tensor([1 / (white * s) for s in std], device=images.device).repeat(width)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).repeat(width)
    rows = torch.addcmul(shift, images.reshape(batch, height, width * channels).float(), scale)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def cutout(images: Tensor, side: int) -> Tensor:
    """Set one ``side`` × ``side`` square per normalised image ``(B, C, H, W)`` to 0, the mean colour; none at 0.

    The centre is anywhere in the image, so squares may hang over the border.
    """
    if not side:
        return images
    batch, _, height, width = images.shape

    def inside(length: int) -> Tensor:
        start = torch.randint(length, (batch, 1), device=images.device) - side // 2
        position = torch.arange(length, device=images.device)
        return (position >= start) & (position < start + side)

    hole = inside(height).unsqueeze(2) & inside(width).unsqueeze(1)
    return images * hole.logical_not().unsqueeze(1)  # unlike masked_fill, keeps channels-last memory
