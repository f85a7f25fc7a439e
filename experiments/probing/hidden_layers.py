"""Hidden layers: what each makes of images, and what that is worth. For the command ``observe`` and its callback."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from experiments.probing.features import Compute, Features
from losses import effective_rank, nearest_mean_top1, probabilities, redundant_shares, separation_fuzziness
from models.local_learning import LocalLearning

Every = Literal["unit", "block"]
"""What counts as a layer: every unit of the network, or the end of every block."""

Layers = Mapping[str, nn.Sequential]
"""Name of a layer → the units that make its features of the layer before, in the order of the network."""

LayerMetrics = dict[str, dict[str, float]]
"""Layer or head → metric → value."""


def layers_of(model: LocalLearning, every: Every = "unit", last: int | None = None) -> dict[str, nn.Sequential]:
    """The layers of a network: ``block<k>/<unit>``, or ``block<k>`` if only the ends of blocks count.

    ``last`` is the number of the last block whose layers they are, from 1; by default all K.
    """
    layers: dict[str, nn.Sequential] = {}
    for name, block in zip(model.block_names[:last], model.blocks.children(), strict=False):
        units = OrderedDict(block.named_children())
        if every == "unit":
            layers |= {f"{name}/{unit}": nn.Sequential(OrderedDict({unit: units[unit]})) for unit in units}
        else:
            layers[name] = nn.Sequential(units)
    return layers


def reader(layers: Layers) -> Compute:
    """What makes the features of all layers of images: maps averaged over a 2×2 grid, flattened ``(B, 4·C)``."""

    def compute(images: Tensor) -> dict[str, Tensor]:
        pooled, features = {}, images
        for name, layer in layers.items():
            features = layer(features)
            pooled[name] = pooled_2x2(features)
        return pooled

    return compute


def pooled_2x2(features: Tensor) -> Tensor:
    """Maps ``(B, C, H, W)`` averaged over a 2×2 grid, or less if they are smaller, flattened; else ``(B, d)``."""
    if features.dim() == 4:
        height, width = features.shape[2:]
        features = F.adaptive_avg_pool2d(features, (min(2, height), min(2, width)))
    return features.flatten(1)


def layer_metrics(train: Features, judged: Features, split: str) -> LayerMetrics:
    """Accuracy of the nearest class mean of training images, separation fuzziness and effective rank of every layer.

    Returns:
        Layer → ``ncm_train``, ``ncm_<split>`` (shares, 0 … 1), ``ncm_gap`` (their difference), ``fuzziness_train``,
        ``fuzziness_<split>``, ``rank_train``, ``rank_<split>``.
    """
    found: LayerMetrics = {layer: {} for layer in train.kinds}
    for layer, metrics in found.items():
        for name, features in (("train", train), (split, judged)):
            values, labels = features.kinds[layer], features.labels
            metrics[f"ncm_{name}"] = nearest_mean_top1(train.kinds[layer], train.labels, values, labels)
            metrics[f"fuzziness_{name}"] = separation_fuzziness(values, labels)
            metrics[f"rank_{name}"] = effective_rank(values)
        metrics["ncm_gap"] = metrics["ncm_train"] - metrics[f"ncm_{split}"]
    return found


def redundancy(logits: Features, sample_losses: Callable[[Tensor, Tensor], Tensor]) -> LayerMetrics:
    """How much of the training data teaches a head nothing more.

    Args:
        logits: of un-augmented training images; head → ``(N, classes)``, or ``(N, G, classes)`` of G heads.
        sample_losses: logits and labels → what the head is trained on, ``(N,)``.

    Returns:
        Head → ``confident_train``, ``small_loss_train``: shares of images, 0 … 1, with p > 0.99 of the true class, and
        with a loss below 0.01. p is the softmax, which only cross-entropy trains to be a probability.
    """
    found = {}
    for head, z in logits.kinds.items():
        confident, small = redundant_shares(probabilities(z), sample_losses(z, logits.labels), logits.labels)
        found[head] = {"confident_train": confident, "small_loss_train": small}
    return found


def flat(metrics: LayerMetrics) -> dict[str, float]:
    """Logged names ``observe/<layer>/<metric>`` → values; what could not be computed is left out."""
    return {
        f"observe/{layer}/{metric}": value
        for layer, found in metrics.items()
        for metric, value in found.items()
        if value == value  # no NaN
    }
