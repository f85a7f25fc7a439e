"""Local learning with neuron groups (GN-DGL): blocks across the depth, groups across the width.

A. Patel, M. Eickenberg, E. Belilovsky, "Local Learning with Neuron Groups", arXiv 2301.07635, 2023.
K blocks of G groups are K·G nodes that learn at once, each with a head and a loss of its own:

    images ──► block 1: group 1 … G ──detach──► … ──► block K: group 1 … G ──detach──► final head
                 │ G heads, L₁                          │ G heads, L_K                    │ L
                 └ optimizer 1                          └ optimizer K                     └ optimizer

    L_k = Σ_g CE(z_kg, y) + λ · diversity(z_k1 … z_kG)        (or another output loss than CE)

Groups of a block share what they computed (the next block and all heads read all channels, with full
sharing) and what they predict (the diversity), but no gradient through activations.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor, nn
from typing_extensions import override

from losses.classification import top1
from losses.diversity import diversity
from losses.errors import NetworkError, UsageError
from models.classification import LocalClassification
from models.networks.chain import NetworkCallable
from models.networks.cut import Cut, block_shapes, cut_chain
from models.networks.groups.cut import end_at_last_map, group_blocks
from models.networks.groups.heads import GroupHeads
from models.networks.heads.classifiers import AuxHead, HeadCallable
from models.networks.sequential import build_chain
from models.plan import StepPlan
from ranges import NonNegativeFloat, PositiveFloat

Sharing = Literal["full", "between_blocks", "none"]
"""Who reads the values of all groups: the next block and the block's heads, the next block, nobody."""


class NeuronGroups(LocalClassification):
    """GN-DGL: K blocks × G neuron groups, trained simultaneously.

    One group is decoupled greedy learning, exactly, with a ``final_head`` and without. Logged beside the metrics of
    :class:`LocalClassification`, whose ``block<k>`` is the mean of the block's G predictions:
    ``val/final/…`` of the final head, which is also the model's prediction (``val/top1``);
    ``val/block<k>/group1/top1`` of the block's first group alone; ``val/block<k>/diversity``.

    Args:
        network: the network, a class from ``models.networks``; of a VGG the convolutions are grouped, and
            the fully connected layers belong to its classifier.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        num_blocks: K. With 1, the groups are G thin networks.
        num_groups: G, a divisor of every width.
        cut: where to cut the depth.
        head: head of one group, a class from ``models.networks``.
        final_head: head on the detached features of the last block; the network's own classifier if
            none is given (the paper has ``AuxHead``).
        sharing: who reads all groups of a block: the next block and the heads (``full``), the next block alone
            (``between_blocks``: the paper without its stop-gradient sharing), or nobody (``none``: G thin networks).
            Heads that read their own group have 1/G of their width. In earlier runs ``full`` was called true and
            ``none`` false.
        diversity: λ, weight of the diversity loss; without effect if G is 1.
        temperature: T of its softmax.
        training: output_loss, optimizer and the other arguments of :class:`LocalClassification` and its base.

    Raises:
        NetworkError: the network cannot be cut, or not be grouped, as asked; it or a head does not fit the images.
        UsageError: a negative weight or temperature, or another word for sharing.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        num_blocks: int = 2,
        num_groups: int = 2,
        cut: Cut = Cut(),
        head: HeadCallable = AuxHead,
        final_head: HeadCallable | None = None,
        sharing: Sharing | bool = "full",
        diversity: NonNegativeFloat = 0.5,
        temperature: PositiveFloat = 3.0,
        **training: Any,
    ) -> None:
        if num_groups < 1:
            raise NetworkError(f"num_groups counts the groups of a block: at least 1, not {num_groups}.")
        if diversity < 0 or temperature <= 0:
            raise UsageError(
                f"diversity is a weight, at least 0, and temperature above 0, not {diversity} and {temperature}."
            )
        if isinstance(sharing, bool):
            sharing = "full" if sharing else "none"
        if sharing not in get_args(Sharing):
            raise UsageError(f"sharing is full, between_blocks or none, not {sharing}.")
        chain = build_chain(network, image_shape, num_classes)
        if num_groups > 1:
            end_at_last_map(chain)

        def block_head(shape: tuple[int, ...]) -> nn.Module:
            if num_groups == 1:
                return head(shape, num_classes)
            return GroupHeads(head, shape, num_classes, num_groups, sharing == "full")

        blocks = cut_chain(chain, num_blocks, cut, lambda shape: head(shape, num_classes))
        shapes = block_shapes(chain, blocks)
        if num_groups > 1:
            group_blocks(blocks, chain.image_shape, num_groups, sharing != "none")
        if num_groups == 1 and final_head is None:
            heads = [*map(block_head, shapes[:-1]), chain.classifier]
        else:
            final = chain.classifier if final_head is None else final_head(shapes[-1], num_classes)
            heads = [*map(block_head, shapes), final]
        super().__init__(network, chain, num_classes, blocks, heads, **training)
        self.num_groups, self.diversity, self.temperature = num_groups, diversity, temperature
        self.sharing = sharing

    @override
    def plan(self) -> StepPlan:
        """Groups that share nothing are networks of their own; between blocks, one block has nothing to share."""
        apart = self.sharing == "none" or (self.sharing == "between_blocks" and self.num_blocks == 1)
        return replace(super().plan(), threads=self.num_groups if apart else 1)

    @override
    def sample_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of the groups' output losses plus λ times their diversity; of the final head, its output loss."""
        if logits.dim() == 2:
            return super().sample_losses(logits, labels)
        groups = logits.shape[1]
        losses = super().sample_losses(logits.flatten(0, 1), labels.repeat_interleave(groups))
        loss = losses.view(-1, groups).sum(dim=1)
        if not self.diversity:
            return loss
        return loss + self.diversity * diversity(logits, labels, self.temperature, reduction="none")

    @override
    def batch_means(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        means = super().batch_means(logits, labels)
        for name, z in logits.items():
            if z.dim() == 3:
                means[f"{name}/group1/top1"] = top1(z[:, 0], labels)
                means[f"{name}/diversity"] = diversity(z, labels, self.temperature)
        return means
