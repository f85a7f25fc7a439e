"""The yardstick: the same network, fresh, trained end to end on the same task."""

from functools import singledispatch

from losses.errors import UsageError
from models.classification import LocalClassification
from models.goodness import GoodnessLearning
from models.local_learning import LocalLearning
from models.methods.backprop import Backprop
from models.methods.blockwise_ssl import BlockwiseSSL
from models.methods.self_contrastive import SelfContrastive
from models.methods.self_defined_target import SelfDefinedTarget
from models.methods.slimclr import SlimCLR
from models.methods.unsupervised_forward_forward import UnsupervisedForwardForward
from models.networks.heads.pooling import GlobalPooling
from models.networks.memory.checkpointed import Checkpointed


@singledispatch
def end_to_end(model: LocalLearning, checkpoint_segments: int = 0) -> LocalLearning:
    """The network of a method, trained as one block: what cost and bench compare with.

    For a method of your own that is neither of those below: ``end_to_end.register``.

    Args:
        model: the method.
        checkpoint_segments: keep activations only at the borders of that many segments; 0 keeps all.

    Raises:
        UsageError: it is not known what to compare this method with.
    """
    raise UsageError(
        f"cost and bench do not know what end-to-end training to compare {type(model).__name__} with: derive it from "
        "LocalClassification or BlockwiseSSL, or register a function with experiments.measure.yardstick.end_to_end."
    )


@end_to_end.register
def _(model: LocalClassification, checkpoint_segments: int = 0) -> LocalLearning:
    """Backpropagation through the network's own classifier, with the same output loss."""
    options = {"optimizer": model.make_optimizer, "output_loss": model.make_output_loss}
    return Backprop(model.make_network, model.image_shape, model.num_classes, checkpoint_segments, **options)


@end_to_end.register
def _(model: BlockwiseSSL, checkpoint_segments: int = 0) -> LocalLearning:
    """One block with the same loss and projector on globally pooled features."""
    whole = BlockwiseSSL(
        model.make_network,
        model.image_shape,
        model.num_classes,
        num_blocks=1,
        loss=model.make_loss,
        loss_scale=model.loss_scale,
        pooling=GlobalPooling,
        projector=model.make_projector,
        concatenate_views=model.concatenate_views,
        optimizer=model.make_optimizer,
    )
    return _checkpointed(whole, checkpoint_segments)


@end_to_end.register
def _(model: SelfDefinedTarget, checkpoint_segments: int = 0) -> LocalLearning:
    """One block with the same outputs and targets, as published."""
    whole = SelfDefinedTarget(
        model.make_network,
        model.image_shape,
        model.num_classes,
        outputs=model.outputs,
        head=model.make_head,
        target=model.make_target,
        optimizer=model.make_optimizer,
    )
    return _checkpointed(whole, checkpoint_segments)


@end_to_end.register
def _(model: UnsupervisedForwardForward, checkpoint_segments: int = 0) -> LocalLearning:
    """One cell: an autoencoder of the whole network."""
    whole = UnsupervisedForwardForward(
        model.make_network,
        model.image_shape,
        model.num_classes,
        num_blocks=1,
        cell=model.make_cell,
        optimizer=model.make_optimizer,
    )
    return _checkpointed(whole, checkpoint_segments)


def _checkpointed(whole: LocalLearning, segments: int) -> LocalLearning:
    """The same one block, keeping activations only at the borders of that many segments; 0 keeps all."""
    if segments:
        whole.blocks[0] = Checkpointed(whole.blocks[0], segments)
    return whole


@end_to_end.register
def _(model: GoodnessLearning, checkpoint_segments: int = 0) -> LocalLearning:
    """Backpropagation through the network's own classifier; no label is in the input."""
    options = {"optimizer": model.make_optimizer}
    return Backprop(model.make_network, model.image_shape, model.num_classes, checkpoint_segments, **options)


@end_to_end.register
def _(model: SelfContrastive, checkpoint_segments: int = 0) -> LocalLearning:
    """Backpropagation of labels through the same layers: nothing of the method is end to end."""
    options = {"optimizer": model.rules[0].optimizer or model.make_optimizer}
    return Backprop(model.make_network, model.image_shape, model.num_classes, checkpoint_segments, **options)


@end_to_end.register
def _(model: SlimCLR, checkpoint_segments: int = 0) -> LocalLearning:
    """The whole network alone."""
    whole = SlimCLR(
        model.make_network,
        model.image_shape,
        model.num_classes,
        widths=(1.0,),
        contrast=model.make_contrast,
        projector=model.make_projector,
        optimizer=model.make_optimizer,
    )
    return _checkpointed(whole, checkpoint_segments)
