"""Residual networks: one unit for the stem and one per residual block (torchvision's blocks)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from typing_extensions import override

from losses.errors import NetworkError
from models.networks.chain import Chain, initialise_convolutions
from models.networks.layers.pooling import GlobalAveragePool
from ranges import PositiveInt


def _stem(channels_in: int, channels_out: int, imagenet: bool = False) -> nn.Sequential:
    """ImageNet's 7×7 convolution with stride 2 and max-pooling, or CIFAR's 3×3 at full resolution."""
    kernel, stride = (7, 2) if imagenet else (3, 1)
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    ]
    layers += [nn.MaxPool2d(kernel_size=3, stride=2, padding=1)] if imagenet else []
    return nn.Sequential(*layers)


def _stages(
    block: type[BasicBlock | Bottleneck], channels: int, widths: Sequence[int], depths: Sequence[int]
) -> dict[str, nn.Module]:
    """The residual blocks ``layer1_0 … layerS_n``; each stage but the first halves the image."""
    units: dict[str, nn.Module] = {}
    for s, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        for b in range(depth):
            stride = 2 if s > 1 and b == 0 else 1
            units[f"layer{s}_{b}"] = _residual(block, channels, width, stride)
            channels = width * block.expansion
    return units


def _residual(block: type[BasicBlock | Bottleneck], channels: int, width: int, stride: int) -> BasicBlock | Bottleneck:
    """One residual block, with a convolution in its shortcut if it changes the shape."""
    out, shortcut = width * block.expansion, None
    if stride != 1 or channels != out:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out)
        )
    return block(channels, width, stride, shortcut)


def _classifier(channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(GlobalAveragePool(), nn.Linear(channels, num_classes))


def _cuts(rows: Mapping[int, str]) -> dict[int, tuple[str, ...]]:
    """K → names of the units that end a block, from the papers' boundaries ``stage_block``."""
    return {k: tuple(end if end == "stem" else f"layer{end}" for end in row.split()) for k, row in rows.items()}


# InfoPro (Wang et al., ICLR 2021) and GN-DGL (Patel et al., 2023) share these boundaries.
_PUBLISHED_CUTS = {
    32: _cuts(
        {
            1: "",
            2: "2_1",
            3: "1_4 2_4",
            4: "1_2 2_1 3_0",
            8: "1_0 1_2 1_4 2_1 2_3 3_0 3_2",
            16: "stem 1_0 1_1 1_2 1_3 1_4 2_0 2_1 2_2 2_3 2_4 3_0 3_1 3_2 3_3",
        }
    ),
    110: _cuts(
        {
            1: "",
            2: "2_8",
            3: "1_17 2_17",
            4: "1_11 2_7 3_3",
            8: "1_4 1_11 2_0 2_7 2_14 3_3 3_10",
            16: "1_1 1_4 1_7 1_10 1_13 1_16 2_1 2_4 2_7 2_11 2_15 3_1 3_5 3_9 3_13",
        }
    ),
}
_PUBLISHED_MEMORY_CUTS = {110: _cuts({1: "", 2: "1_14", 3: "1_9 2_2", 4: "1_6 1_14 2_8"})}


class _Residual(Chain):
    """A chain of residual blocks behind a stem, drawn from He's normal distribution."""

    @override
    def unit_like(self, index: int, feature_shape: tuple[int, ...], halve: bool) -> nn.Module:
        """A residual block; of the stem there is none."""
        unit = self.units[index]
        if not isinstance(unit, BasicBlock | Bottleneck):
            return super().unit_like(index, feature_shape, halve)
        made = _residual(type(unit), feature_shape[0], unit.conv1.out_channels, stride=2 if halve else 1)
        initialise_convolutions(made)
        return made


class CifarResNet(_Residual):
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
        widths: Sequence[PositiveInt] = (16, 16, 32, 64),
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
        self.published_cuts = _PUBLISHED_CUTS.get(depth, {})
        self.published_memory_cuts = _PUBLISHED_MEMORY_CUTS.get(depth, {})


class ResNet(_Residual):
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
        widths: Sequence[PositiveInt] = (64, 128, 256, 512),
    ) -> None:
        if depth not in self._depths:
            raise NetworkError(f"A ResNet has depth {', '.join(map(str, self._depths))}, not {depth}.")
        if len(widths) != 4:
            raise NetworkError(f"widths holds the channels of four stages, e.g. [64, 128, 256, 512], not {widths}.")
        block, depths = self._depths[depth]
        first = _stem(image_shape[0], widths[0], imagenet=stem == "imagenet")
        units = {"stem": first, **_stages(block, widths[0], widths, depths)}
        factor = "" if widths[0] == 64 else f"×{widths[0] / 64:g}"
        name = f"ResNet-{depth}{factor}" + (" (CIFAR stem)" if stem == "cifar" else "")
        super().__init__(units, _classifier(widths[-1] * block.expansion, num_classes), image_shape, name)
        initialise_convolutions(self)
        if zero_init_residual:
            for unit in self.units:
                if isinstance(unit, Bottleneck | BasicBlock):
                    nn.init.zeros_((unit.bn3 if isinstance(unit, Bottleneck) else unit.bn2).weight)
        # The cut of Siddiqui et al. (2023): one block per stage, the stem with the first. Two stages, or one residual
        # block each, continue it to other K for the study of depth (docs/methods/blockwise_ssl.md).
        ends = [f"layer{s}_{d - 1}" for s, d in enumerate(depths, start=1)]
        _, *residual = units
        self.published_cuts = {1: (), 2: (ends[1],), 4: tuple(ends[:3]), len(residual): tuple(residual[:-1])}


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Rename the tensors of a torchvision ResNet checkpoint to those of :class:`ResNet`.

    ``ResNet((3, 224, 224), 1000, 50).load_state_dict(from_torchvision(torch.load(...)))``. The backbone that Siddiqui
    et al. (2024) released (``resnet50.pth``) is such a checkpoint with a pooling head behind each stage, whose tensors
    get their names in :class:`models.BlockwiseSSL`: ``heads.0.pooling.conv.weight`` and so on.

    Args:
        state: ``state_dict`` of ``torchvision.models.resnet18 … resnet101``, or the released one.

    Raises:
        NetworkError: a key is none of such a network.
    """
    places = {"conv1": "units.stem.0.", "bn1": "units.stem.1.", "fc": "classifier.1."}
    pooling = {"0": "conv", "1": "bn"}

    def rename(key: str) -> str:
        first, _, rest = key.partition(".")
        inner, _, last = rest.partition(".")
        if first.startswith("layer"):
            return f"units.{first}_{inner}.{last}"
        if first.startswith("pool_conv_block_"):
            return f"heads.{int(first[-1]) - 1}.pooling.{pooling[inner]}.{last}"
        if first not in places:
            raise NetworkError(f"A torchvision ResNet has no tensor {key!r}. Strip prefixes such as 'module.' first.")
        return places[first] + rest

    return {rename(key): tensor for key, tensor in state.items()}
