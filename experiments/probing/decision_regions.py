"""Pictures of what a classifier of points in the plane decides where."""

from collections.abc import Callable

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

_SIDE = 300
_MARGIN = 0.1


@torch.no_grad()
def draw_regions(
    axes: Axes, classify: Callable[[Tensor], Tensor], points: Tensor, labels: Tensor, size: float = 12
) -> None:
    """Colour the plane by the predicted class, and put points ``(N, 2)`` with their true one, ``(N,)``, on it.

    ``classify`` gives the logits of any points; ``size`` is the area of a point, in square points of print.
    """
    low, high = points.amin(dim=0), points.amax(dim=0)
    low, high = low - _MARGIN * (high - low), high + _MARGIN * (high - low)
    across, up = (torch.linspace(float(a), float(b), _SIDE) for a, b in zip(low, high, strict=True))
    plane = torch.cartesian_prod(across, up).split(10_000)  # in parts: 90,000 points of 500 units are 360 MB
    decided = torch.cat([classify(part).argmax(dim=1) for part in plane]).view(_SIDE, _SIDE).T
    colours = colormaps["tab10"]
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    regions = colours(decided.cpu().numpy())
    axes.imshow(regions, origin="lower", extent=extent, alpha=0.35, interpolation="nearest")
    x, y = points.T.cpu()
    axes.scatter(x, y, c=colours(labels.cpu().numpy()), s=size, edgecolors="white", linewidths=0.3)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
