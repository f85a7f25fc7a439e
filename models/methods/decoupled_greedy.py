"""Decoupled greedy learning (DGL).

E. Belilovsky, M. Eickenberg, E. Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020. Every block
has an auxiliary head of its own and is trained on its cross-entropy; the last block has the network's
own classifier. All blocks learn on every batch.

The published code of neuron groups (Patel et al., 2023) ends otherwise: the last block has an auxiliary head, too, and
a final head learns on its detached features.
"""

from typing import Any

from models.classification import LocalClassification
from models.networks.chain import NetworkCallable
from models.networks.cut import Cut, block_shapes, cut_chain
from models.networks.heads.classifiers import AuxHead, HeadCallable
from models.networks.sequential import build_chain


class DecoupledGreedy(LocalClassification):
    """DGL: K blocks with auxiliary classifiers, trained simultaneously.

    Args:
        network: the network, a class from ``models.networks``.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        num_blocks: K; 1 is ordinary backpropagation.
        cut: where to cut.
        head: auxiliary head of blocks 1 … K − 1, a class from ``models.networks``.
        last_head: head of block K; by default the network's own classifier, or before a final head one as the others.
        final_head: head on the detached features of block K, whose prediction is the model's; none by default.
        training: output_loss, optimizer and the other arguments of :class:`LocalClassification` and its base.

    Raises:
        NetworkError: the network cannot be cut as asked; the network or a head does not fit the images.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        num_blocks: int = 2,
        cut: Cut = Cut(),
        head: HeadCallable = AuxHead,
        last_head: HeadCallable | None = None,
        final_head: HeadCallable | None = None,
        **training: Any,
    ) -> None:
        chain = build_chain(network, image_shape, num_classes)
        blocks = cut_chain(chain, num_blocks, cut, lambda shape: head(shape, num_classes))
        *inner, last = block_shapes(chain, blocks)
        if final_head is not None:
            last_head = last_head or head
        own = chain.classifier if last_head is None else last_head(last, num_classes)
        heads = [*(head(shape, num_classes) for shape in inner), own]
        heads += [] if final_head is None else [final_head(last, num_classes)]
        super().__init__(network, chain, num_classes, blocks, heads, **training)
