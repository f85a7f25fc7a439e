"""First filters that whiten the images, computed from them."""

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from experiments.callbacks.fit_trainer import FitTrainer
from losses.errors import UsageError
from models.local_learning import LocalLearning
from ranges import PositiveFloat, PositiveInt


class Whitening(L.Callback):
    """Sets the fixed first convolution of a network (``Airbench``) to filters that whiten patches of training images.

    The filters are the eigenvectors of the uncentred covariance of all k×k patches of the first images, normalised as
    the network reads them, each divided by √(λ + eps), largest λ first; then the same with the other sign. Their
    outputs thus have mean square λ / (λ + eps). K. Jordan, arXiv 2404.00498, 2024.

    A resumed run keeps its checkpoint's filters.

    Args:
        images: that the covariance is taken of; all, if there are fewer.
        eps: added to λ.
        bias_epochs: epochs in which the bias of these filters learns; then it stays, and no gradient goes back so far.
            By default it always learns.
        zero_bias: begin with a bias of 0, not one that torch draws.

    Raises:
        UsageError: the network does not begin with such a convolution, or there are fewer images than numbers in a
            patch.
    """

    changes_training = True

    def __init__(
        self,
        images: PositiveInt = 5000,
        eps: PositiveFloat = 5e-4,
        bias_epochs: PositiveInt | None = None,
        zero_bias: bool = True,
    ) -> None:
        self.images, self.eps, self.bias_epochs, self.zero_bias = images, eps, bias_epochs, zero_bias

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """See that there is a convolution to set."""
        _first_convolution(pl_module)

    @override
    def on_train_start(self, trainer: FitTrainer, pl_module: LocalLearning) -> None:
        """Set the filters, unless a checkpoint of this run was read."""
        if trainer.global_step:
            return
        data, layer = trainer.datamodule, _first_convolution(pl_module)
        images = data.training_images.for_evaluation()
        first = images.__getitems__(torch.arange(min(self.images, len(images)))).images
        values = layer.weight[0].numel()
        if len(first) < values:
            raise UsageError(
                f"Whitening takes the covariance of the {values} numbers of a patch, and {len(first)} images are too "
                f"few to know it: give at least {values}, or take the callback out."
            )
        filters = whitening_filters(data.normalised(first), layer.kernel_size[0], self.eps)
        with torch.no_grad():
            layer.weight.copy_(torch.cat([filters, -filters]))
            if self.zero_bias and layer.bias is not None:
                layer.bias.zero_()

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: LocalLearning) -> None:
        """Let the bias learn, or not any more."""
        bias = _first_convolution(pl_module).bias
        if self.bias_epochs is not None and bias is not None:
            bias.requires_grad_(trainer.current_epoch < self.bias_epochs)


def whitening_filters(images: Tensor, side: int, eps: float) -> Tensor:
    """Filters ``(C·side², C, side, side)`` that whiten patches of images ``(N, C, H, W)``, largest variance first."""
    size = images.shape[1] * side**2
    total, count = torch.zeros(size, size, dtype=torch.float64, device=images.device), 0
    for piece in images.split(max(1, 2**20 // images[0].numel())):  # patches take side² times the memory, in float64
        patches = F.unfold(piece.double(), side).transpose(0, 1).flatten(1)  # (C · side², images · positions)
        total, count = total + patches @ patches.T, count + patches.shape[1]
    values, vectors = torch.linalg.eigh(total / count)
    filters = (vectors / (values.clamp(min=0) + eps).sqrt()).T.flip(0)
    return filters.view(-1, images.shape[1], side, side).to(images)


def _first_convolution(model: L.LightningModule) -> nn.Conv2d:
    layers = (layer for block in getattr(model, "blocks", ()) for layer in block.modules())
    layer = next((layer for layer in layers if isinstance(layer, nn.Conv2d)), None)
    if layer is None or layer.weight.requires_grad or layer.out_channels != 2 * layer.weight[0].numel():
        raise UsageError(
            "Whitening sets the fixed first convolution of a network such as models.networks.Airbench, and this one "
            "does not begin with any: take the callback out."
        )
    return layer
