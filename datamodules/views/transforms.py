"""Pairs of random views of every image, as self-supervised losses compare them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightly.transforms.byol_transform import BYOLView1Transform
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.simclr_transform import SimCLRViewTransform
from lightly.transforms.torchvision_v2_compatibility import ToTensor
from lightly.transforms.vicreg_transform import VICRegViewTransform
from torchvision.transforms import v2

from datamodules.files import DataError
from datamodules.images import Images, MemoryImages
from datamodules.views.batched import cuts, steps, translate
from ranges import NonNegativeFloat, PositiveInt, Share


@dataclass
class Views:
    """Which views training images are shown in.

    Args:
        transform: image side in pixels → lightly's transform that makes two views of a PIL image, not
            normalised: :class:`SimCLRViews`, :class:`BarlowTwinsViews`, :class:`VICRegViews` or another.
        batched: carry the transform out on whole batches on the device; only the crop and the flips of images that
            are read from disk are made while they are loaded, from their full size. Otherwise all of it runs on one
            image after the other while they are loaded, as lightly does it.
        levels: strengths at which each pair is rendered, rising to 1. Weaker views of an image
            are nested: their crop contains the stronger one, their colours change the same way but less.

    Raises:
        DataError: levels that do not rise to 1 within 0 … 1, or several without ``batched``.
    """

    transform: Callable[[int], MultiViewTransform]
    batched: bool = True
    levels: tuple[Share, ...] = (1.0,)

    def __post_init__(self) -> None:
        self.levels = tuple(self.levels)
        if not self.levels or self.levels[0] < 0 or self.levels[-1] != 1 or sorted(set(self.levels)) != [*self.levels]:
            raise DataError(f"views.levels must rise from 0 or more to 1, unlike {self.levels}.")
        if len(self.levels) > 1 and not self.batched:
            raise DataError("Views of several levels are rendered in batches only: set views.batched to true.")

    def pair_transform(self, side: int) -> MultiViewTransform:
        """The transform for images of that side.

        Raises:
            DataError: it does not make two views, normalises them itself, or with ``batched`` has an
                operation without a batched form.
        """
        transform = self.transform(side)
        if len(transform.transforms) != 2:
            raise DataError(f"Views come in pairs, but {type(transform).__name__} makes {len(transform.transforms)}.")
        if any(isinstance(step, v2.Normalize) for view in transform.transforms for step in steps(view)):
            raise DataError(
                f"{type(transform).__name__} normalises its views, which the data module does: give it normalize: null."
            )
        if self.batched:
            for view in transform.transforms:
                translate(view)
        return transform

    def require_for(self, images: Images, side: int, batch_size: int, name: str) -> None:
        """Say before training, not in its middle, that these training images of that side cannot be shown so.

        Raises:
            DataError: there is no full batch, images are not in memory as several levels want them, or the transform
                is none for :meth:`pair_transform`.
        """
        if len(images) < batch_size:
            raise DataError(
                f"{name} has {len(images)} training images, fewer than one batch of {batch_size}; "
                "with views only full batches are used: lower batch_size."
            )
        if len(self.levels) > 1 and self.made_while_loading(images):
            raise DataError(
                f"The images of {name} are read from disk, where they are cropped once: give views one level, 1."
            )
        self.pair_transform(side)

    def made_while_loading(self, images: Images) -> bool:
        """Whether two pictures of each of these images are made while it is loaded, not on the device."""
        return not (self.batched and isinstance(images, MemoryImages))

    def while_loading(self, side: int) -> Sequence[Callable[[Any], Any]]:
        """What makes those two pictures of a PIL image."""
        transforms = self.pair_transform(side).transforms
        return [cuts(transform) for transform in transforms] if self.batched else transforms


class PlainViews(MultiViewTransform):
    """Two views, not normalised, that lightly makes of an image.

    Args:
        view: makes one of them.
        sides: what view a and view b have of their own.
        input_size: side of the views, in pixels; the data module gives it.
        min_scale: smallest share of the image that a crop shows.
        strength: factor of the jitter.
        gray: probability of taking the colour away.
        flip: probability of mirroring; 0 for digits and letters.
    """

    def __init__(
        self,
        view: Callable[..., Any],
        sides: Sequence[Mapping[str, Any]],
        input_size: int,
        min_scale: Share = 0.08,
        strength: NonNegativeFloat = 1.0,
        gray: Share = 0.2,
        flip: Share = 0.5,
    ) -> None:
        shared = {"min_scale": min_scale, "cj_strength": strength, "random_gray_scale": gray, "hf_prob": flip}
        super().__init__([view(input_size, **shared, **own, normalize=None) for own in sides])


class SimCLRViews(PlainViews):
    """The two views of SimCLR (Chen et al., 2020); both are drawn alike.

    Jitter .8, .8, .8, .2 of brightness, contrast, saturation, hue. The defaults are the paper's for ImageNet.
    CIFAR: ``strength: 0.5, blur: 0`` (the paper and lightly's benchmark), or the defaults (solo-learn).

    Args:
        blur: probability of Gaussian blur.
        shared: what all views take: see :class:`PlainViews`.
    """

    def __init__(self, input_size: int, blur: Share = 0.5, **shared: Any) -> None:
        super().__init__(SimCLRViewTransform, [{"gaussian_blur": blur}] * 2, input_size, **shared)


class BarlowTwinsViews(PlainViews):
    """The two views of Barlow Twins (Zbontar et al., 2021) and BYOL.

    Jitter .4, .4, .2, .1 of brightness, contrast, saturation, hue. The defaults are the papers' for ImageNet.
    CIFAR: ``blur: [0, 0]`` (lightly's benchmark and solo-learn).

    Args:
        blur: probability of Gaussian blur of view a and view b.
        solarize: probability of solarization of view a and view b.
        shared: what all views take: see :class:`PlainViews`.
    """

    def __init__(
        self,
        input_size: int,
        blur: tuple[Share, Share] = (1.0, 0.1),
        solarize: tuple[Share, Share] = (0.0, 0.2),
        **shared: Any,
    ) -> None:
        sides = [{"gaussian_blur": b, "solarization_prob": s} for b, s in zip(blur, solarize, strict=True)]
        super().__init__(BYOLView1Transform, sides, input_size, **shared)


class VICRegViews(PlainViews):
    """The two views of VICReg (Bardes et al., 2022); solarization comes before blur.

    Jitter .4, .4, .2, .1 of brightness, contrast, saturation, hue. The defaults are the paper's for ImageNet.
    CIFAR: ``min_scale: 0.2, blur: 0`` (solo-learn).

    Args:
        blur: probability of Gaussian blur.
        solarize: probability of solarization.
        shared: what all views take: see :class:`PlainViews`.
    """

    def __init__(self, input_size: int, blur: Share = 0.5, solarize: Share = 0.1, **shared: Any) -> None:
        jitter = {"cj_bright": 0.4, "cj_contrast": 0.4, "cj_sat": 0.2, "cj_hue": 0.1}
        own = {"gaussian_blur": blur, "sigmas": (0.1, 2), "solarize_prob": solarize}
        super().__init__(VICRegViewTransform, [own | jitter] * 2, input_size, **shared)


class ShiftedViews(MultiViewTransform):
    """Two views that show the image shifted, each by whole pixels of its own; black where nothing is.

    Runs image by image: ``batched: false``.

    Args:
        input_size: side of the images, in pixels; the data module gives it.
        pixels: largest shift, along either axis, to either side.
    """

    def __init__(self, input_size: int, pixels: PositiveInt = 2) -> None:
        share = pixels / input_size
        view = v2.Compose([v2.RandomAffine(degrees=0, translate=(share, share)), ToTensor()])
        super().__init__([view, view])
