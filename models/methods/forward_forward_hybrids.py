"""Forward-Forward without labels: blocks are active on images and quiet on hybrids of two.

G. Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", arXiv 2212.13345, 2022, section 3.2.

    image ──────────────┐
    hybrid of two ──────┴► block 1 ──detach──► block 2 ──detach──► … ──► block K ──► read-out: classes
                             │ goodness           │ goodness               │ goodness
"""

from typing import Any

from torch import Tensor
from typing_extensions import override

from losses.goodness import hybrid_masks, hybrids, unit_length
from models.goodness import Contrast, GoodnessLearning
from models.method import LabelledImages
from models.networks.chain import NetworkCallable
from ranges import NonNegativeInt


class ForwardForwardHybrids(GoodnessLearning):
    """K blocks that tell images from hybrids by their goodness; only the read-out learns from labels.

    A hybrid is one image within random regions and the batch's one before it elsewhere: right nearby, wrong as a whole.

    Args:
        network: the network, a class from ``models.networks``; its classifier is not used.
        image_shape: ``(C, H, W)``; the command line takes it from the data.
        num_classes: number of classes; the command line takes it from the data.
        blurs: how often the random bits are blurred of which the regions are made; more of them, larger regions.
        options: all else, as in :class:`GoodnessLearning`.

    Raises:
        NetworkError: as in :class:`GoodnessLearning`.
    """

    def __init__(
        self,
        network: NetworkCallable,
        image_shape: tuple[int, int, int],
        num_classes: int,
        blurs: NonNegativeInt = 8,
        **options: Any,
    ) -> None:
        super().__init__(network, image_shape, num_classes, **options)
        self.blurs = blurs

    @override
    def step_input(self, batch: LabelledImages) -> tuple[int, Any]:
        """Images, and hybrids of each with the next one."""
        if batch.arrived:
            return batch.arrived
        images = batch.images
        made = hybrids(images, images.roll(1, 0), hybrid_masks(images, self.blurs))
        return 0, Contrast(unit_length(images), unit_length(made))

    @override
    def seen(self, features: Contrast) -> Tensor:
        """The read-out reads the images' own rows."""
        return features.positive
