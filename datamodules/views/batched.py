"""lightly's view transforms, carried out on whole batches: the same operations, in the same order.

Own code because it is faster: 10,500 to 13,000 pairs of 32×32 views a second on one core, kornia's batches 4,600 and
lightly's images one by one 1,500.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from lightly.transforms.gaussian_blur import GaussianBlur
from lightly.transforms.rotation import RandomRotate, RandomRotateDegrees
from lightly.transforms.solarize import RandomSolarization
from lightly.transforms.torchvision_v2_compatibility import ToTensor
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from datamodules.files import DataError
from datamodules.views.colour import Blur, Draw, Gray, Jitter, JitterDraw, Solarize, drawn_by
from datamodules.views.crop import Crop


class Operation(Protocol[Draw]):
    """A random change of images: drawn for every image, applied to whole batches.

    It does what its torchvision or lightly namesake does to one PIL image, without rounding to whole grey levels in
    between. What was drawn is used at a strength in 0 … 1: 1 is the ordinary operation, and what is shown at a lower
    strength is a weaker form of the same.
    """

    def draw(self, count: int, height: int, width: int, device: torch.device) -> Draw:
        """Numbers for ``count`` images of that size, each tensor ``(count, …)``, from torch's generator."""

    def apply(self, x: Tensor, drawn: Draw, strength: float) -> Tensor:
        """Changed images; ``x`` is float32 ``(B, C, H, W)`` in 0 … 255 and may be overwritten."""


Operations = tuple[Crop, *tuple[Operation[Any], ...]]
Chain = tuple[Any, ...]
# Images that a CPU works on at a time: 128 of 32×32 pixels stay in a core's cache: experiments/studies/views.py.
CHUNK = 128
_FEWEST = 8  # of 224×224 pixels: 1.2 times as fast as two, which would stay in the cache
_CUTS = (v2.RandomResizedCrop, v2.RandomHorizontalFlip, v2.RandomVerticalFlip)
_BILINEAR = (InterpolationMode.BILINEAR, InterpolationMode.BILINEAR.value)  # torchvision takes both


class BatchedView:
    """One view of every image of a batch: :meth:`draw` the random numbers, then :meth:`render` them.

    Every image draws its own, from torch's global generator. The same numbers can be rendered at
    several strengths, which gives nested views: weaker crops contain stronger ones, colours change
    the same way but less. Strength 1 is the ordinary view, at 0 only the flip is left.

    Args:
        operations: those of the view, in their order; without a crop the size stays as it is.
        mean: mean of each channel for images in 0 … 1; by default nothing is normalised.
        std: standard deviation of each channel.
    """

    def __init__(
        self, operations: Sequence[Operation[Any]], mean: Sequence[float] = (0,), std: Sequence[float] = (1,)
    ) -> None:
        self._operations = operations
        self._scale = torch.tensor([1 / (255 * s) for s in std])
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])

    def draw(self, images: Tensor) -> Chain:
        """Random numbers for images ``(B, H, W, C)``: one named tuple of tensors ``(B, …)`` per operation."""
        count, height, width, _ = images.shape
        return tuple(operation.draw(count, height, width, images.device) for operation in self._operations)

    def render(self, images: Tensor, chain: Chain, strength: float = 1.0, chunk: int | None = None) -> Tensor:
        """Make the view that was drawn.

        Args:
            images: uint8 ``(B, H, W, C)``.
            chain: what :meth:`draw` gave for them.
            strength: 0 … 1.
            chunk: images worked on at a time; by default few on a CPU, all elsewhere.

        Returns:
            Normalised float32 ``(B, C, H', W')`` in channels-last memory, of the size of the crop.
        """
        batch, *size, channels = images.shape
        height, width = next((one.size for one in self._operations if isinstance(one, Crop)), size)
        order = _order(chain, batch, images.device)
        result = torch.empty(batch, height, width, channels, device=images.device)
        # One factor per pixel and channel of a row, as in augment.normalise.
        scale, shift = (t.expand(channels).repeat(width).to(images.device) for t in (self._scale, self._shift))
        for chosen in order.split(chunk or (_in_cache(height, width) if images.device.type == "cpu" else batch)):
            view = self._changed(images, chosen, chain, strength).permute(0, 2, 3, 1).contiguous()
            rows = view.flatten(2)
            torch.addcmul(shift, rows, scale, out=rows)
            result.index_copy_(0, chosen, view)
        return result.permute(0, 3, 1, 2)

    def _changed(self, images: Tensor, chosen: Tensor, chain: Chain, strength: float) -> Tensor:
        """The chosen images after all operations, float32 ``(B, C, H, W)`` in 0 … 255."""
        x = images.permute(0, 3, 1, 2).index_select(0, chosen).float()
        for operation, drawn in zip(self._operations, chain, strict=True):
            x = operation.apply(x, drawn_by(chosen, drawn), strength)
        return x


def _in_cache(height: int, width: int) -> int:
    """Images of that size that a CPU works on at a time."""
    return min(CHUNK, max(_FEWEST, CHUNK * 32 * 32 // (height * width)))


def _order(chain: Chain, batch: int, device: torch.device) -> Tensor:
    """The images in the order in which the jitter wants them."""
    groups = [drawn.group() for drawn in chain if isinstance(drawn, JitterDraw)]
    return groups[0].argsort() if groups else torch.arange(batch, device=device)


def translate(transform: Callable[[Any], Tensor]) -> Operations:
    """The batched form of a view's operations: crop and flips, then the others in their order.

    Flips join the crop wherever they stand, as they change places with everything else.

    Raises:
        DataError: an operation has no batched form, or the first is no crop.
    """
    first, *others = steps(transform)
    crop, names = _crop(first), [type(step).__name__ for step in others]
    operations: list[Operation[Any]] = []
    for step in others:
        if isinstance(step, v2.RandomHorizontalFlip):
            crop = replace(crop, flip=step.p)
        elif isinstance(step, v2.RandomVerticalFlip):
            crop = replace(crop, vertical_flip=step.p)
        elif operation := _batched(step):
            operations.append(operation)
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"A batched view has no operation twice, as here {min(twice)}: set views.batched to false.")
    return (crop, *operations)


def cuts(transform: Callable[[Any], Tensor]) -> v2.Compose:
    """PIL image → uint8 ``(C, H, W)``: what a view's transform does before it changes colours, crop and flips.

    torchvision resizes tensors nearly twice as fast as Pillow its images; one value in forty differs, by one level.
    """
    return v2.Compose([v2.PILToTensor(), *(step for step in steps(transform) if isinstance(step, _CUTS))])


def steps(transform: Any) -> Iterator[Any]:
    """The single operations of a composition, unpacked from lightly's classes around it."""
    if isinstance(transform, v2.Compose):
        for step in transform.transforms:
            yield from steps(step)
    elif isinstance(getattr(transform, "transform", None), v2.Compose) and not isinstance(transform, ToTensor):
        yield from steps(transform.transform)
    else:
        yield transform


def _crop(step: Any) -> Crop:
    if not isinstance(step, v2.RandomResizedCrop) or step.interpolation not in _BILINEAR:
        raise DataError(
            f"A batched view begins with a bilinear RandomResizedCrop, not with {type(step).__name__}: "
            "set views.batched to false."
        )
    return Crop(tuple(step.size), step.scale, step.ratio, flip=0.0)


def _batched(step: Any) -> Operation[Any] | None:
    """The batched form of an operation that changes colours; ``None`` if it never changes any."""
    match step:
        case v2.RandomApply(transforms=[v2.ColorJitter() as jitter], p=p):
            return Jitter(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, p)
        case v2.RandomGrayscale(p=p):
            return Gray(p)
        case GaussianBlur(prob=p, sigmas=sigmas):
            return Blur(p, sigmas) if p else None
        case RandomSolarization(prob=p, threshold=threshold):
            return Solarize(p, threshold) if p else None
        case ToTensor() | RandomRotate(prob=0) | RandomRotateDegrees(transform=v2.RandomApply(p=0)):
            return None
    raise DataError(f"The view operation {type(step).__name__} has no batched form: set views.batched to false.")
