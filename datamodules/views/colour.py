"""The random changes of colour, and the blur, of views."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

Range = Sequence[float]
Draw = TypeVar("Draw", bound=tuple[Tensor, ...])
_PIECE = 32  # blurred pixels of a row that are computed at a time
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114  # ITU-R 601-2, as Pillow's mode L


class JitterDraw(NamedTuple):
    """How each image is jittered.

    Attributes:
        applied: whether at all, bool ``(B,)``.
        factors: of brightness, contrast and saturation ``(B, 3)``.
        hue: shift in turns ``(B,)``.
        slots: when each of these four comes, a permutation of 0 … 3, ``(B, 4)``.
    """

    applied: Tensor
    factors: Tensor
    hue: Tensor
    slots: Tensor

    def group(self) -> Tensor:
        """Slot of the hue, 4 for images that are not jittered: :class:`Jitter` wants images sorted by it."""
        return torch.where(self.applied, self.slots[:, 3], 4)


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast, saturation and hue, in an order of each image's own.

    The first three are x ← clamp(f·x + α·gray(x) + β) with numbers per image, so one update serves
    them all, and only hue needs its images together: a slice, as they come sorted.

    Args:
        brightness, contrast, saturation: least and largest factor; ``None`` for no change.
        hue: least and largest shift in turns; ``None`` for no change.
        probability: of jittering an image at all.
    """

    brightness: Range | None
    contrast: Range | None
    saturation: Range | None
    hue: Range | None
    probability: float = 1.0

    def draw(self, count: int, height: int, width: int, device: torch.device) -> JitterDraw:
        """Factors and orders by torchvision's rule."""

        def uniform(limits: Range | None, neutral: float) -> Tensor:
            low, high = limits or (neutral, neutral)
            return torch.empty(count, device=device).uniform_(low, high)

        factors = [uniform(limits, 1.0) for limits in (self.brightness, self.contrast, self.saturation)]
        applied = torch.rand(count, device=device) < self.probability
        slots = torch.rand(count, 4, device=device).argsort(1)
        return JitterDraw(applied, torch.stack(factors, 1), uniform(self.hue, 0.0), slots)

    def apply(self, x: Tensor, drawn: JitterDraw, strength: float) -> Tensor:
        """Jitter images that come sorted by :meth:`JitterDraw.group`."""
        starts = torch.searchsorted(drawn.group(), torch.arange(5, device=x.device)).tolist()
        jittered = slice(0, starts[4])
        order = drawn.slots[jittered, :3].argsort(1)  # of brightness 0, contrast 1, saturation 2
        factors = (1 + strength * (drawn.factors[jittered] - 1)).gather(1, order)
        to_mean, to_gray = ((1 - factors) * (order == change) for change in (1, 2))
        for step in range(4):
            shifted = slice(starts[step], starts[step + 1])
            if self.hue and x.shape[1] == 3 and shifted.start < shifted.stop:
                shift_hue_(x[shifted], strength * drawn.hue[shifted])
            if step < 3 and starts[4]:
                _blend_(x[jittered], *(number[:, step].view(-1, 1, 1, 1) for number in (factors, to_gray, to_mean)))
        return x


def _blend_(x: Tensor, factor: Tensor, to_gray: Tensor, to_mean: Tensor) -> None:
    """In place: clamp(factor · x + to_gray · gray(x) + to_mean · mean of gray(x)); factors ``(B, 1, 1, 1)``."""
    gray = gray_of(x)
    mean = gray.mean((1, 2, 3), keepdim=True)
    torch.addcmul(to_mean * mean, gray, to_gray, out=gray)
    torch.addcmul(gray, x, factor, out=x).clamp_(0, 255)


def gray_of(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` → a new ``(B, 1, H, W)``: brightness of colour images, grey images as they are."""
    if x.shape[1] == 1:
        return x.clone()
    red, green, blue = x.split(1, dim=1)
    return torch.mul(red, _RED).add_(green, alpha=_GREEN).add_(blue, alpha=_BLUE)


def shift_hue_(x: Tensor, turns: Tensor) -> None:
    """Turn the hue of colour images ``(B, 3, H, W)`` in place, each by its own part of a full turn ``(B,)``.

    HSV as in torchvision's ``adjust_hue``, without its comparisons, which are slow. With v the largest,
    c the largest less the smallest channel, w = (r − min) / c and d = (b − g) / c, hue in turns is
    1/2 ± (3w + |d| − 2w|d|) / 6 with the sign of d, and back from hue h:

        r = v − 2c + 6c · clamp(|h − 1/2|, 1/6, 1/3)
        g = v +  c − 6c · clamp(|h − 1/3|, 1/6, 1/3)
        b = v +  c − 6c · clamp(|h − 2/3|, 1/6, 1/3)
    """
    red, green, blue = x.unbind(1)
    top = torch.maximum(red, green).maximum(blue)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    chroma = torch.sub(top, low).mul_(6)
    inverse = chroma.clamp_min(1e-12).reciprocal_()  # grey pixels: all that is multiplied by it is 0
    d = torch.sub(blue, green).mul_(inverse)
    w = torch.sub(red, low, out=low).mul_(inverse)
    size = torch.abs(d, out=inverse)
    hue = torch.addcmul(size, w, torch.rsub(size, 3, alpha=12))  # d, w are sixths here, hence 12 = 2 · 6
    hue.copysign_(d).add_((turns + 1.5).view(-1, 1, 1)).frac_()  # 1.5: positive, so that frac wraps
    for channel, centre, base, sign in ((red, 1 / 2, -1 / 3, 1), (green, 1 / 3, 1 / 6, -1), (blue, 2 / 3, 1 / 6, -1)):
        torch.sub(hue, centre, out=d).abs_().clamp_(1 / 6, 1 / 3)
        torch.add(top, chroma, alpha=base, out=w)
        torch.addcmul(w, chroma, d, value=sign, out=channel)


class ChanceDraw(NamedTuple):
    """A uniform number in 0 … 1 per image ``(B,)``."""

    chance: Tensor


@dataclass(frozen=True)
class Sometimes:
    """A change of those images whose chance is below probability × strength.

    Args:
        probability: of changing an image.
    """

    probability: float

    def draw(self, count: int, height: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
        """A chance per image."""
        return ChanceDraw(torch.rand(count, device=device))

    def apply(self, x: Tensor, drawn: Any, strength: float) -> Tensor:
        """Changed images instead of those that drew it."""
        chosen = (drawn.chance < self.probability * strength).nonzero()[:, 0]
        if len(chosen) == len(x):
            return self.changed(x, drawn)
        if len(chosen):
            x[chosen] = self.changed(x[chosen], drawn_by(chosen, drawn))
        return x

    def changed(self, x: Tensor, drawn: Any) -> Tensor:
        """The images ``(B, C, H, W)``, all of them changed."""
        raise NotImplementedError(f"{type(self).__name__} must implement changed(x, drawn).")


def drawn_by(chosen: Tensor, drawn: Draw) -> Draw:
    """What was drawn for the chosen images."""
    return type(drawn)(*(numbers.index_select(0, chosen) for numbers in drawn))


@dataclass(frozen=True)
class Gray(Sometimes):
    """Take the colour away."""

    @override
    def changed(self, x: Tensor, drawn: ChanceDraw) -> Tensor:
        return gray_of(x).repeat(1, x.shape[1], 1, 1)


@dataclass(frozen=True)
class Solarize(Sometimes):
    """Invert all pixels from a threshold (of 256 levels) on."""

    threshold: int = 128

    @override
    def changed(self, x: Tensor, drawn: ChanceDraw) -> Tensor:
        # Pillow compares whole grey levels: from half a level below the threshold up they round to it.
        return torch.where(x < self.threshold - 0.5, x, 255 - x)


class BlurDraw(NamedTuple):
    """As :class:`ChanceDraw`, with the standard deviation of each image's kernel in pixels ``(B,)``."""

    chance: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Blur(Sometimes):
    """Gaussian blur as Pillow does it: three box blurs each way, the border pixel repeated.

    Args:
        sigmas: least and largest standard deviation, in pixels.
    """

    sigmas: Range = (0.1, 2.0)

    @override
    def draw(self, count: int, height: int, width: int, device: torch.device) -> BlurDraw:
        """A chance and a sigma per image."""
        return BlurDraw(torch.rand(count, device=device), torch.empty(count, device=device).uniform_(*self.sigmas))

    @override
    def changed(self, x: Tensor, drawn: BlurDraw) -> Tensor:
        batch, channels, height, width = x.shape
        across = self._blurred(x.reshape(batch, channels * height, width), drawn.sigma)  # (B, W, C · H)
        down = self._blurred(across.view(batch, width * channels, height), drawn.sigma)  # (B, H, W · C)
        return down.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def _blurred(self, rows: Tensor, sigma: Tensor) -> Tensor:
        """Rows ``(B, N, length)``, blurred and lying: ``(B, length, N)``."""
        pieces = self._pieces(sigma, rows.shape[2])
        return torch.cat([weights @ rows[:, :, seen].mT for seen, weights in pieces], 1)

    def _pieces(self, sigma: Tensor, side: int) -> Iterator[tuple[slice, Tensor]]:
        """A row of blurred pixels piece by piece: the pixels it is made of, and their weights ``(B, piece, seen)``.

        Most pixels of a long row have no part in a piece. Away from the ends all pieces have the same weights: those of
        a row that is just long enough.
        """
        margin = 3 * ceil(max(self.sigmas))  # three boxes reach no farther
        short = min(side, _PIECE + 2 * margin)
        kernel = self._kernel(sigma, short)
        for start in range(0, side, _PIECE):
            stop = min(start + _PIECE, side)
            seen = slice(max(start - margin, 0), min(stop + margin, side))
            left_out = start - min(start, max(margin, start - (side - short)))
            pixels = slice(seen.start - left_out, seen.stop - left_out)
            yield seen, kernel[:, start - left_out : stop - left_out, pixels]

    def _kernel(self, sigma: Tensor, side: int) -> Tensor:
        """``(B, side, side)``: weight of each pixel of a row in each blurred pixel."""
        radius, reach = _box_radius(sigma).view(-1, 1, 1), int(max(self.sigmas) * sqrt(3)) + 2
        blurred = torch.arange(side, device=sigma.device).view(-1, 1)
        source = torch.arange(-reach, side + reach, device=sigma.device)
        weights = (radius + 1 - (blurred - source).abs()).clamp_(0, 1) / (2 * radius + 1)
        box = weights[:, :, reach:-reach].clone()
        box[:, :, 0] += weights[:, :, :reach].sum(2)
        box[:, :, -1] += weights[:, :, -reach:].sum(2)
        return box @ box @ box


def _box_radius(sigma: Tensor) -> Tensor:
    """Radius of the box that, three times over, has this standard deviation (Pillow's BoxBlur.c)."""
    variance = sigma * sigma / 3
    whole = ((12 * variance + 1).sqrt() / 2 - 0.5).floor()
    return whole + (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
