"""Training with labels, as a control beside a run: of a whole network, or of all that is behind some of its blocks."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from typing_extensions import override

from datamodules.base import ImageDataModule
from experiments.measure.silent import silent_trainer
from experiments.probing.hidden_layers import Layers
from models.methods.backprop import Backprop
from models.networks.chain import Chain, NetworkCallable
from models.networks.sequential import build_chain


def supervised_top1(
    network: NetworkCallable, data: ImageDataModule, trainer: L.Trainer, epochs: int, seed: int
) -> float:
    """Test top-1, 0 … 1, of a network trained from scratch with labels, end to end, after the last epoch.

    The recipe for labels of blockwise self-supervised studies: SGD, momentum 0.9, Nesterov, learning
    rate 0.1 · batch / 128, weight decay 5e-4, cosine; the data module's own augmentation, one view. The trainer gives
    device and precision.
    """
    torch.manual_seed(seed)
    sgd = partial(SGD, lr=0.1 * data.batch_size / 128, momentum=0.9, nesterov=True, weight_decay=5e-4)
    cosine = partial(CosineAnnealingLR, T_max=epochs)
    whole = Backprop(network, data.image_shape, data.num_classes, optimizer=sgd, scheduler=cosine)
    device = trainer.strategy.root_device.type
    own = silent_trainer(accelerator=device, precision=trainer.precision, max_epochs=epochs)
    own.fit(whole, datamodule=data)
    return own.test(whole, datamodule=data, verbose=False)[0]["test/top1"]


def recoverable_top1(
    layers: Layers, network: NetworkCallable, data: ImageDataModule, trainer: L.Trainer, epochs: int, seed: int
) -> dict[str, float]:
    """Recoverable accuracy: what the first blocks of a network discarded cannot come back.

    Blocks 1 … k stay as they are; all behind them, drawn anew, learns with labels by the recipe of
    :func:`supervised_top1`. Equal seeds draw the same weights behind the blocks of any run.

    Args:
        layers: of the trained network.
        network: what makes it untrained.
        data: its images.
        trainer: of the call.
        epochs: for each k.
        seed: of the weights and of all else that is drawn.

    Returns:
        Last layer of each block k → test top-1, 0 … 1.
    """
    places = list(layers)
    ends = {place.partition("/")[0]: number for number, place in enumerate(places, start=1)}  # the last one counts
    behind = {places[end - 1]: partial(_continued, [layers[p] for p in places[:end]], network) for end in ends.values()}
    return {place: supervised_top1(made, data, trainer, epochs, seed) for place, made in behind.items()}


def _continued(
    kept: Sequence[nn.Sequential], network: NetworkCallable, image_shape: tuple[int, int, int], num_classes: int
) -> Chain:
    """A network with its first layers in place of its own first units."""
    fresh = build_chain(network, image_shape, num_classes)
    known = {unit for layer in kept for unit, _ in layer.named_children()}
    behind = {name: unit for name, unit in fresh.units.named_children() if name not in known}
    return Chain({"kept": _Kept(kept), **behind}, fresh.classifier, fresh.image_shape, fresh.name)


class _Kept(nn.Module):
    """Layers that training leaves alone: without gradients, always in evaluation mode."""

    def __init__(self, layers: Sequence[nn.Sequential]) -> None:
        super().__init__()
        self.layers = deepcopy(nn.Sequential(*layers)).requires_grad_(False)
        self.eval()

    @override
    def train(self, mode: bool = True) -> "_Kept":
        return super().train(False)

    @override
    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
