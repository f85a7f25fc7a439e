"""What the command line asks of a way to train, whether it goes through the common loop or stands beside it."""

import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import lightning.pytorch as L
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from typing_extensions import override

from losses import ensemble, probabilities
from losses.errors import UsageError, causes, where_to_look
from models.metrics import EvaluationMetrics
from models.networks.chain import NetworkCallable
from models.plan import Schedule
from models.saved import INSTANTIATOR, read_checkpoint


class LabelledImages(Protocol):
    """A batch, as data modules give them."""

    @property
    def images(self) -> Tensor:
        """``(B, C, H, W)``."""

    @property
    def labels(self) -> Tensor:
        """int64 ``(B,)``."""

    @property
    def views(self) -> Sequence[tuple[float, Tensor, Tensor]]:
        """Pairs of views of every image, if asked for: (strength, view a, view b), views ``(B, C, H, W)``."""

    @property
    def indices(self) -> Tensor | None:
        """Places of the images in the training split ``(B,)``, in training."""

    @property
    def weights(self) -> Tensor | None:
        """Weights of the samples' losses ``(B,)``, if they differ."""

    @property
    def arrived(self) -> tuple[int, Any] | None:
        """The block that goes on, and what it reads, if those before it have learned from the batch elsewhere."""


def view_pairs(batch: LabelledImages) -> dict[float, tuple[Tensor, Tensor]]:
    """A batch's pairs of views, ``(B, C, H, W)`` each, by their strength, weakest first.

    Raises:
        UsageError: there are none, or of one image only.
    """
    if not batch.views:
        raise UsageError(
            "Self-supervised blocks learn from pairs of views: give the data views, for example "
            "--data.views.transform datamodules.SimCLRViews."
        )
    if len(batch.labels) < 2:
        raise UsageError("Pairs of views of one image have nothing to differ from: batches hold at least 2.")
    return {strength: (a, b) for strength, a, b in batch.views}


class Method(L.LightningModule):
    """A way to train a network of blocks on images.

    :class:`~models.local_learning.LocalLearning` is the loop of all methods with backward passes; one that does
    not fit it (closed-form fitting) is a method of its own beside it. Checkpoints of ``fit`` hold what a method was
    built from: ``DecoupledGreedy.load_from_checkpoint(path)`` needs no arguments, and no data set.

    Attributes:
        make_network: what makes the network, uncut.
        network_name: what tables call it.
        image_shape: ``(C, H, W)``.
        num_classes: number of classes.
        num_blocks: K.
        num_groups: G, neuron groups per block.
        schedule: who learns when.
        latest: metrics of the last logged training step, under their logged names.
        predicts_classes: whether calling the module gives logits ``(B, classes)``, and validation and test log
            their accuracy.
    """

    make_network: NetworkCallable
    network_name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_blocks: int
    num_groups: int = 1
    schedule: Schedule
    predicts_classes: ClassVar[bool] = False

    # In Lightning's own place, "hyper_parameters", they would override what is typed beside --ckpt_path FILE.
    CHECKPOINT_HYPER_PARAMS_KEY = "arguments"

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[str, float] = {}

    @property
    def block_names(self) -> list[str]:
        """What metrics call the blocks, in order: ``block1`` … ``blockK``."""
        return [f"block{k}" for k in range(1, self.num_blocks + 1)]

    @property
    def part_names(self) -> list[str]:
        """What metrics call whatever predicts or learns: the blocks, and what a method has beside them."""
        return self.block_names

    @property
    def why_one_process(self) -> str | None:
        """Why DDP must not share the images of a batch out among processes; None if it may."""
        return "is not built for several processes"

    @property
    def monitor(self) -> str | None:
        """Logged metric whose best value ``best.ckpt`` keeps, larger is better; None for no such file."""
        return None

    judged_features: ClassVar[str] = "gap"
    """Kind of :meth:`block_features` that stands for a block: the online probe reads it, reports show it."""

    def block_features(self, images: Tensor, last: int | None = None) -> dict[str, Tensor]:
        """What probes read: ``block<k>/gap`` → features of block k, averaged over positions, ``(B, C_k)``.

        Args:
            images: ``(B, C, H, W)``.
            last: number of the last block to compute, from 1; by default all K.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its blocks' features are.")

    @property
    def nested_features(self) -> Sequence[str]:
        """Kinds of :meth:`block_features` whose channels are the first of the widest one's, which comes first; or none.

        One linear classifier can read all of them.
        """
        return ()

    def block_logits(self, images: Tensor) -> dict[str, Tensor]:
        """Name of each block that predicts → its logits ``(B, classes)``, in order; the last are the model's."""
        raise NotImplementedError(f"{type(self).__name__} predicts no classes.")

    @property
    def learned_blocks(self) -> list[str]:
        """Names of the blocks that have learned: all, unless they do so one after the other and are not done."""
        return self.block_names

    def take_shape_of(self, checkpoint: Mapping[str, Any]) -> None:
        """Become the model that a checkpoint was saved from, for methods whose parts do not learn all at once."""

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["image_shape"] = self.image_shape  # convolutions do not know it
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # a connector of Lightning's sets it
        if hasattr(data, "mean"):
            checkpoint |= {"image_mean": [*map(float, data.mean)], "image_std": [*map(float, data.std)]}
        if hasattr(data, "classes"):
            checkpoint["classes"] = [*map(str, data.classes)]

    def keep_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Have checkpoints hold what this model was built from.

        Args:
            arguments: those of the constructor, plain as in a YAML.
        """
        built = type(self)
        how = {
            "_class_path": f"{built.__module__}.{built.__qualname__}",
            "_instantiator": INSTANTIATOR,
        }
        self.save_hyperparameters({**arguments, **how}, logger=False)

    @classmethod
    @override
    def load_from_checkpoint(cls, checkpoint_path: Any, *options: Any, **arguments: Any) -> Self:
        """The model that a run saved: built from the arguments in its checkpoint, with its weights.

        Args:
            checkpoint_path: the file.
            options: Lightning's, such as ``map_location``; by name they may be among the arguments.
            arguments: of the constructor, where they shall be others than the saved ones.

        Raises:
            UsageError: the checkpoint is damaged, of another class, or of one that is not imported, or a folder; or
                the network cannot be built, as where it is in a file that is not found.
        """
        if Path(checkpoint_path).is_dir():
            file = Path(checkpoint_path, "checkpoints", "last.ckpt")
            raise UsageError(f"{checkpoint_path} is a folder: give the checkpoint in it, {file}.")
        saved = read_checkpoint(checkpoint_path)
        kept = saved.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {})
        module, _, name = kept.get("_class_path", "").rpartition(".")
        built = getattr(sys.modules.get(module), name, None) if kept else cls
        if built is None:
            raise UsageError(f"{checkpoint_path} is a checkpoint of {name}: import {name} from {module} first.")
        if not (isinstance(built, type) and issubclass(built, cls)):
            raise UsageError(
                f"{checkpoint_path} is a checkpoint of {name}, not of {cls.__name__}: import {name} from {module}, and "
                f"call {name}.load_from_checkpoint."
            )
        try:
            return super(Method, built).load_from_checkpoint(checkpoint_path, *options, **arguments)
        except ArgumentError as fault:  # jsonargparse's: something among the arguments is not what it was
            *_, first = causes(fault)
            raise UsageError(f"{checkpoint_path} cannot be built: {first}.{where_to_look(first)}") from None


class Classifier(Method):
    """A method that predicts classes: what it logs of its predictions in validation and test.

    ``<split>/<block>/top1`` and ``…/top5`` of every block that :meth:`block_logits` names, ``<split>/top1`` of the last
    of them, which is the model's prediction, and what :meth:`batch_means` adds.
    """

    predicts_classes: ClassVar[bool] = True
    has_ensemble: ClassVar[bool] = False
    """Whether the blocks' predictions are also judged together, as ``<split>/ensemble/top1``."""

    @property
    @override
    def monitor(self) -> str | None:
        """The model's prediction on the validation images."""
        return "val/top1"

    def batch_means(self, logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Further metrics that are means over the images of a batch: name → scalar."""
        return {}

    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self._evaluation = EvaluationMetrics(self.num_classes, self.device)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: LabelledImages, batch_idx: int) -> None:
        """Count a batch, unless none of the blocks that have learned predicts."""
        if not (logits := self.block_logits(batch.images)):
            return
        self._evaluation.update(self.predictions(logits), batch.labels, self.batch_means(logits, batch.labels))

    test_step = validation_step

    def predictions(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is judged: predictions of the blocks whose logits are given, the model's own (without name), theirs all.

        Args:
            logits: name of each block that predicts → its logits, in order.
        """
        found = {name: probabilities(z) for name, z in logits.items()}
        found[""] = found[list(logits)[-1]]
        if self.has_ensemble and len(logits) > 1:
            found["ensemble"] = ensemble(list(logits.values()))
        return found

    @override
    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self._evaluation.compute().items()})

    @override
    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self._evaluation.compute().items()})

    @override
    def predict_step(self, batch: LabelledImages, batch_idx: int) -> Tensor:
        """Softmax ``(B, classes)`` of the prediction: probabilities, if cross-entropy was trained on; else scores."""
        return self(batch.images).softmax(dim=1)


def require_supported_processes(method: Method, trainer: L.Trainer) -> None:
    """Refuse to train in several processes what they would train wrongly.

    Raises:
        UsageError: the method needs one process, or the strategy is none for its blocks.
    """
    strategy, alone = trainer.strategy, trainer.num_devices * trainer.num_nodes == 1
    if alone and not isinstance(strategy, DDPStrategy):
        return
    if method.why_one_process:
        raise UsageError(
            f"{type(method).__name__} {method.why_one_process}. Use --trainer.devices 1 and no --trainer.strategy."
        )
    one_block = method.schedule.parts == 1
    if not (isinstance(strategy, DDPStrategy) if one_block else getattr(strategy, "steps_by_block", False)):
        others = " or CompressedDDP" if one_block else ", in which every block averages its own gradients"
        raise UsageError(
            f"{type(strategy).__name__} does not train the blocks of {type(method).__name__}: use "
            f"--trainer.strategy ddp{others}."
        )


def log_epoch(model: L.LightningModule, metrics: Mapping[str, Tensor | float]) -> None:
    """Log what an epoch came to, now.

    What is given to a module's own ``log`` gets to the loggers after the last callback, and so after the checkpoint: a
    run killed in between would lose it.
    """
    if not metrics:
        return
    model.log_dict(dict(metrics), on_step=False, on_epoch=True, logger=False, batch_size=1)
    row = {name: float(value) for name, value in metrics.items()} | {"epoch": model.current_epoch}
    for logger in model.loggers:
        logger.log_metrics(row, step=model.global_step - 1)
