"""predsim: local errors from a prediction and from similarities.

A. Nøkland, L. H. Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019. Every block is trained
to predict the class, and to make its features alike within a class and unlike between classes:

    block k ─┬─► pooling, linear ──► ŷ         (1 − β) · cross-entropy with the label
             └─► 3×3 convolution ──► z         β · MSE(S(z), S(one-hot labels))

S are the cosines between the images of the batch (``losses.similarity``). β = 0 is the paper's ``pred``, β = 1 its
``sim``. The network's classifier, its prediction, learns by cross-entropy on the last block's detached features.
"""

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from losses import channel_deviation, similarity_loss, top1
from losses.errors import UsageError
from losses.processes import gathered
from models.classification import LocalClassification
from models.method import LabelledImages
from models.networks.chain import NetworkCallable
from models.networks.cut import Cut, block_shapes, cut_chain
from models.networks.heads.classifiers import LinearHead
from models.networks.sequential import build_chain
from ranges import PositiveInt, Share


class PredSim(LocalClassification):
    """K blocks trained by prediction and similarity matching; the paper has one block per layer.

    Here a block's loss reads what the block hands on; in the published code it reads a layer's output before its
    max-pooling, at four times the cost. Beside the loss, its two parts are logged: ``train/block<k>/similarity`` and
    ``train/block<k>/prediction``; ``val/block<k>/loss`` is the prediction's.

    Args:
        network: the network, a class from ``models.networks``. Its own dropout would come before the local
            losses; the paper's is ``dropout``.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        num_blocks: K; the classifier on the last block is not counted.
        cut: where to cut.
        beta: β, share of the similarity loss, 0 … 1.
        prediction_inputs: maps are pooled until the linear prediction reads at most so many inputs (the
            published code's ``dim_in_decoder``).
        dropout: share of what a block hands on that is dropped in training, of maps whole channels.
        training: optimizer, scheduler and the other arguments of :class:`LocalLearning`.

    Raises:
        UsageError: β outside 0 … 1, a dropout below 0 or not below 1.
        NetworkError: the network cannot be cut as asked; the network does not fit the images.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        num_blocks: int = 2,
        cut: Cut = Cut(),
        beta: Share = 0.99,
        prediction_inputs: PositiveInt = 4096,
        dropout: Share = 0.0,
        **training: Any,
    ) -> None:
        if not (0 <= beta <= 1 and 0 <= dropout < 1):
            raise UsageError(
                f"beta is a share from 0 to 1 and dropout one from 0 to below 1, not {beta} and {dropout}."
            )
        chain = build_chain(network, image_shape, num_classes)

        def make_head(shape: tuple[int, ...]) -> nn.Module:
            return PredSimHead(shape, num_classes, prediction_inputs, beta)

        blocks = cut_chain(chain, num_blocks, cut, make_head)
        heads = [*map(make_head, block_shapes(chain, blocks)), zeroed(chain.classifier)]
        super().__init__(network, chain, num_classes, blocks, heads, **training)
        self.beta, self.dropout = beta, dropout

    @override
    def on_train_batch_start(self, batch: LabelledImages, batch_idx: int) -> None:
        """Refuse a batch of one image, which has nothing to compare."""
        if self.beta and len(batch.labels) < 2:
            raise UsageError(
                "The similarity loss compares the images of a batch, but a batch has only one. Choose a "
                "data.batch_size of at least 2 that does not leave a single image over."
            )
        super().on_train_batch_start(batch, batch_idx)

    @override
    def local_loss(self, k: int, features: Tensor, batch: LabelledImages) -> Tensor:
        """(1 − β) times the prediction's loss plus β times the similarity loss; of the classifier, cross-entropy."""
        head = self.heads[k]
        if not isinstance(head, PredSimHead):
            return super().local_loss(k, features, batch)
        outputs = dict(zip(head, head(features), strict=True))
        loss = features.new_zeros(())
        if "similarity" in outputs:
            similarity = similarity_loss(gathered(outputs["similarity"]), gathered(batch.labels), self.num_classes)
            loss = loss + self.beta * similarity
            self.record(k, "similarity", similarity.detach())
        if "prediction" in outputs:
            prediction = self.prediction_loss(outputs["prediction"], batch.labels)
            loss = loss + (1 - self.beta) * prediction
            self.record(k, "prediction", prediction.detach())
            if self.logs_this_step:
                self.record(k, "top1", top1(outputs["prediction"], batch.labels))
        return loss

    @override
    def hand_on(self, k: int, features: Tensor) -> Tensor:
        """Detached features with dropout, which the next block reads and block k's own loss does not."""
        drop = F.dropout2d if features.dim() == 4 else F.dropout
        return drop(super().hand_on(k, features), self.dropout, self.training)

    @override
    def block_prediction(self, k: int, features: Tensor) -> Tensor | None:
        """Of every block that predicts, which with β = 1 is none, and of the classifier."""
        head = self.heads[k]
        if not isinstance(head, PredSimHead):
            return head(features)
        return head["prediction"](features) if "prediction" in head else None


class PredSimHead(nn.ModuleDict):
    """``similarity``, whose output's similarities are matched, and ``prediction``; only those that β gives weight."""

    def __init__(self, feature_shape: tuple[int, ...], num_classes: int, inputs: int, beta: float) -> None:
        super().__init__()
        if beta > 0:
            self["similarity"] = similarity_layer(feature_shape)
        if beta < 1:
            self["prediction"] = zeroed(LinearHead(feature_shape, num_classes, pooled_size(feature_shape, inputs)))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """The output of each part, in order."""
        return tuple(part(features) for part in self.values())


class ChannelDeviation(nn.Module):
    """The standard deviations that :func:`losses.similarity_matrix` takes of maps; in a head, ``cost`` counts them."""

    def forward(self, maps: Tensor) -> Tensor:
        """``(B, C, H, W)`` → ``(B, C)``."""
        return channel_deviation(maps)


def similarity_layer(feature_shape: tuple[int, ...]) -> nn.Module:
    """What makes features comparable: a 3×3 convolution C → C, of vectors a linear layer; without bias."""
    width = feature_shape[0]
    if len(feature_shape) == 1:
        return nn.Linear(width, width, bias=False)
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelDeviation())


def pooled_size(feature_shape: tuple[int, ...], inputs: int) -> tuple[int, ...]:
    """Rows and columns to pool a map to: halved in turn until C · rows · columns ≤ ``inputs`` or one is left.

    The published code's rule; odd sides are rounded up. Of a vector, ``()``.
    """
    channels, *sides = feature_shape
    while channels * math.prod(sides) > inputs and max(sides, default=1) > 1:
        longest = sides.index(max(sides))
        sides[longest] = -(-sides[longest] // 2)
    return tuple(sides)


def zeroed(classifier: nn.Module) -> nn.Module:
    """The same classifier, the weights of its last linear layer set to 0: where the paper's predictions start."""
    for layer in [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)][-1:]:
        nn.init.zeros_(layer.weight)
    return classifier
