"""Residual networks: one unit for the stem and one per residual block (torchvision's blocks)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from losses.errors import NetworkError
from models.networks.chain import Chain, initialise_convolutions
from models.networks.layers.pooling import GlobalAveragePool


def _stem(channels_in: int, channels_out: int) -> nn.Sequential:
    """3×3 convolution at full resolution, BatchNorm, ReLU: the CIFAR stem, without max-pooling."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _imagenet_stem(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size=7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )


def _stages(
    block: type[BasicBlock | Bottleneck], channels: int, widths: Sequence[int], depths: Sequence[int]
) -> dict[str, nn.Module]:
    """The residual blocks ``layer1_0 … layerS_n``; each stage but the first halves the image."""
    units: dict[str, nn.Module] = {}
    for s, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        for b in range(depth):
            stride = 2 if s > 1 and b == 0 else 1
            out = width * block.expansion
            shortcut = None
            if stride != 1 or channels != out:
                shortcut = nn.Sequential(
                    nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out)
                )
            units[f"layer{s}_{b}"] = block(channels, width, stride, shortcut)
            channels = out
    return units


def _classifier(channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(GlobalAveragePool(), nn.Linear(channels, num_classes))


def _unit(position: tuple[int, int]) -> str:
    """Name of the unit after which the papers' boundary (stage, block) cuts; (0, 0) is the stem."""
    stage, block = position
    return f"layer{stage}_{block}" if stage else "stem"


def _table(rows: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, tuple[str, ...]]:
    return {k: tuple(map(_unit, row)) for k, row in rows.items()}


# InfoPro (Wang et al., ICLR 2021) and GN-DGL (Patel et al., 2023) share these boundaries (stage, block).
_RESNET32_CUTS = _table(
    {
        1: [],
        2: [(2, 1)],
        3: [(1, 4), (2, 4)],
        4: [(1, 2), (2, 1), (3, 0)],
        8: [(1, 0), (1, 2), (1, 4), (2, 1), (2, 3), (3, 0), (3, 2)],
        16: [(0, 0), *((s, b) for s in (1, 2, 3) for b in range(5))][:-1],
    }
)
_RESNET110_CUTS = _table(
    {
        1: [],
        2: [(2, 8)],
        3: [(1, 17), (2, 17)],
        4: [(1, 11), (2, 7), (3, 3)],
        8: [(1, 4), (1, 11), (2, 0), (2, 7), (2, 14), (3, 3), (3, 10)],
        16: [
            *((1, b) for b in (1, 4, 7, 10, 13, 16)),
            *((2, b) for b in (1, 4, 7, 11, 15)),
            *((3, b) for b in (1, 5, 9, 13)),
        ],
    }
)
_RESNET110_MEMORY_CUTS = _table({1: [], 2: [(1, 14)], 3: [(1, 9), (2, 2)], 4: [(1, 6), (1, 14), (2, 8)]})


class CifarResNet(Chain):
    """ResNet-20/32/44/56/110 for small images (He et al., 2016, section 4.2).

    A 3×3 stem, then three stages of (depth − 2) / 6 basic blocks, average pooling, linear classifier.
    Shortcuts that change stride or width are learned 1×1 convolutions with BatchNorm.

    Args:
        image_shape: ``(C, H, W)`` of an input image.
        num_classes: width of the output.
        depth: 6n + 2, counted as in the paper: 20, 32, 44, 56, 110, …
        widths: channels of the stem and the three stages; ``[32, 32, 64, 128]`` is the ×2 network.

    Raises:
        NetworkError: the depth is not 6n + 2, or four widths are not given.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        depth: int = 32,
        widths: Sequence[int] = (16, 16, 32, 64),
    ) -> None:
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise NetworkError(f"A CIFAR ResNet has depth 6n + 2 (20, 32, 44, 56, 110), not {depth}.")
        if len(widths) != 4:
            raise NetworkError(
                f"widths holds the channels of stem and three stages, e.g. [16, 16, 32, 64], not {widths}."
            )
        stem, *stages = widths
        units = {"stem": _stem(image_shape[0], stem), **_stages(BasicBlock, stem, stages, [blocks] * 3)}
        factor = "" if stem == 16 else f"×{stem / 16:g}"
        super().__init__(units, _classifier(stages[-1], num_classes), image_shape, f"ResNet-{depth}{factor}")
        initialise_convolutions(self)
        self.published_cuts = {32: _RESNET32_CUTS, 110: _RESNET110_CUTS}.get(depth, {})
        self.published_memory_cuts = {110: _RESNET110_MEMORY_CUTS}.get(depth, {})


class ResNet(Chain):
    """ResNet-18/34/50/101 (He et al., 2016), the same function as torchvision's.

    Args:
        image_shape: ``(C, H, W)`` of an input image.
        num_classes: width of the output.
        depth: 18, 34, 50 or 101.
        stem: ``imagenet`` is 7×7 stride 2 and max-pooling; ``cifar`` is 3×3 stride 1 without pooling.
        zero_init_residual: start each residual branch at zero (last BatchNorm scale 0), as
            self-supervised recipes do.
        widths: channels of the four stages (times 4 where blocks are bottlenecks); smaller ones for a CPU.

    Raises:
        NetworkError: another depth, or not four widths.
    """

    _depths: Mapping[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
        18: (BasicBlock, (2, 2, 2, 2)),
        34: (BasicBlock, (3, 4, 6, 3)),
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
    }

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        depth: Literal[18, 34, 50, 101] = 50,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        zero_init_residual: bool = False,
        widths: Sequence[int] = (64, 128, 256, 512),
    ) -> None:
        if depth not in self._depths:
            raise NetworkError(f"A ResNet has depth {', '.join(map(str, self._depths))}, not {depth}.")
        if len(widths) != 4:
            raise NetworkError(f"widths holds the channels of four stages, e.g. [64, 128, 256, 512], not {widths}.")
        block, depths = self._depths[depth]
        make_stem = _imagenet_stem if stem == "imagenet" else _stem
        units = {"stem": make_stem(image_shape[0], widths[0]), **_stages(block, widths[0], widths, depths)}
        factor = "" if widths[0] == 64 else f"×{widths[0] / 64:g}"
        name = f"ResNet-{depth}{factor}" + (" (CIFAR stem)" if stem == "cifar" else "")
        super().__init__(units, _classifier(widths[-1] * block.expansion, num_classes), image_shape, name)
        initialise_convolutions(self)
        if zero_init_residual:
            for unit in self.units:
                if isinstance(unit, Bottleneck | BasicBlock):
                    nn.init.zeros_((unit.bn3 if isinstance(unit, Bottleneck) else unit.bn2).weight)
        # The cut of Siddiqui et al. (2023): one block per stage, the stem with the first.
        ends = [f"layer{s}_{d - 1}" for s, d in enumerate(depths, start=1)]
        self.published_cuts = {1: (), 2: (ends[1],), 4: tuple(ends[:3])}


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Rename the tensors of a torchvision ResNet checkpoint to those of :class:`ResNet`.

    ``ResNet((3, 224, 224), 1000, 50).load_state_dict(from_torchvision(torch.load(...)))``

    Args:
        state: ``state_dict`` of ``torchvision.models.resnet18 … resnet101``.

    Raises:
        NetworkError: a key is none of such a network.
    """
    places = {"conv1": "units.stem.0.", "bn1": "units.stem.1.", "fc": "classifier.1."}

    def rename(key: str) -> str:
        first, _, rest = key.partition(".")
        if first.startswith("layer"):
            block, _, rest = rest.partition(".")
            return f"units.{first}_{block}.{rest}"
        if first not in places:
            raise NetworkError(f"A torchvision ResNet has no tensor {key!r}. Strip prefixes such as 'module.' first.")
        return places[first] + rest

    return {rename(key): tensor for key, tensor in state.items()}
