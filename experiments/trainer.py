"""What the command line can do with a model besides training: each command's options are a method's arguments."""

import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
import torch.distributed as dist

from datamodules.base import ImageDataModule
from datamodules.files import note
from experiments.distributed.bench_processes import bench_processes, show_bench_processes
from experiments.measure.audit import audit, show_audit
from experiments.measure.bench import bench, show_bench
from experiments.measure.cost import replicas, show_cost
from experiments.measure.prediction import foresee, show_prediction
from experiments.measure.simulator import Link
from experiments.probing.hidden_layers import Every
from experiments.probing.observe import observe_run
from experiments.probing.probe import probe_run
from experiments.probing.processes import in_all
from experiments.probing.protocol import Protocol
from losses.errors import UsageError
from models.local_learning import LocalLearning
from models.method import Method
from models.networks.memory.profile import Convention
from ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share

Precision = Literal["32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16", 32, 16]
"""Lightning's that leave weights float32, under all its names."""


class Trainer(L.Trainer):
    """Lightning's Trainer with more to do with a model: ``cost``, ``bench``, ``audit``, ``probe`` and ``observe``.

    Args:
        max_epochs: epochs of the training; -1: no end, but ``max_steps``.
        limit_train_batches: so many batches of an epoch, or this share of them.
        check_val_every_n_epoch: validate after every n-th epoch.
        val_check_interval: validate after so many batches, or this share of an epoch.
        log_every_n_steps: log every n-th step; 0: none.
        precision: of the computation; weights are float32.
        lightning: all else: see ``lightning.pytorch.Trainer``.
    """

    def __init__(
        self,
        *,
        max_epochs: PositiveInt | Literal[-1] | None = None,
        limit_train_batches: PositiveInt | PositiveFloat | None = None,
        check_val_every_n_epoch: PositiveInt | None = 1,
        val_check_interval: PositiveInt | PositiveFloat | str | None = None,
        log_every_n_steps: NonNegativeInt | None = None,
        precision: Precision | None = None,
        **lightning: Any,
    ) -> None:
        super().__init__(
            max_epochs=max_epochs,
            limit_train_batches=limit_train_batches,
            check_val_every_n_epoch=check_val_every_n_epoch,
            val_check_interval=val_check_interval,
            log_every_n_steps=log_every_n_steps,
            precision=precision,
            **lightning,
        )
        if str(self.precision) == "bf16-mixed" and self.strategy.root_device.type == "cpu" and not cpu_has_bfloat16():
            note(
                "this CPU has no bfloat16 instructions, and torch imitates them: 18 times slower than in "
                "float32. Leave --trainer.precision out."
            )

    def cost(
        self,
        model: Method,
        datamodule: ImageDataModule,
        json: bool = False,
        convention: Convention = "published",
        processes: PositiveInt | None = None,
        simulate: bool = False,
        link_gigabits: PositiveFloat | None = None,
        link_milliseconds: NonNegativeFloat = 0.0,
        jitter: NonNegativeFloat = 0.0,
    ) -> None:
        """Show parameters, MACs, activation bytes and bytes handed on of every node, without training.

        Or, with ``processes`` or ``simulate``, how fast blocks and groups would train on processes of their own.

        Args:
            model: the method.
            datamodule: the data set.
            json: print JSON instead of a table.
            convention: count MACs as the GN-DGL paper does (BatchNorm, ReLU, pooling and biases
                included), or only those of convolutions and matrix products.
            processes: predict the step of so many, from times that are measured here, of random images; in as many
                processes at once as the Trainer has devices.
            simulate: predict that of 1, 2, 4 … processes, up to one for every node.
            link_gigabits: bandwidth between processes, Gb/s, each way; none: what travels takes no time.
            link_milliseconds: latency between processes.
            jitter: how much a process's step times differ: their standard deviation over their mean.
        """
        model = with_backward_passes(model)
        if not (processes or simulate):
            show_cost(model, datamodule.batch_size, convention, json, replicas(self))
            return
        link = Link(link_gigabits * 1e9 / 8 if link_gigabits else math.inf, link_milliseconds / 1000)
        measured, predictions = foresee(model, datamodule, self, processes, link, jitter)
        if self.is_global_zero:
            show_prediction(measured, predictions, json, f"{model.network_name}, a batch of {datamodule.batch_size}")

    def bench(
        self,
        model: Method,
        datamodule: ImageDataModule,
        json: bool = False,
        steps: PositiveInt = 10,
        repetitions: PositiveInt = 5,
        processes: PositiveInt = 1,
    ) -> None:
        """Measure images/s, step time and peak activation memory against ordinary backprop.

        With several processes: blocks on devices of their own beside one process, replicas, and pipelining.

        Args:
            model: the method.
            datamodule: the data set; random images of its shape are used.
            json: print JSON instead of a table.
            steps: training steps per repetition.
            repetitions: alternating repetitions of each contender; medians are reported.
            processes: that are measured; with more than one the batch is that of all together.
        """
        if processes == 1:
            show_bench(bench(with_backward_passes(model), datamodule, self, steps, repetitions), json)
            return
        result = bench_processes(with_backward_passes(model), datamodule, self, steps, repetitions, processes)
        if dist.get_rank() == 0:
            show_bench_processes(result, json)

    def audit(self, model: Method, datamodule: ImageDataModule, json: bool = False) -> None:
        """Measure how local the learning is: whose loss reaches, and whose parameters influence, which block.

        Args:
            model: the method.
            datamodule: the data set; random images of its shape are used.
            json: print JSON instead of a table.
        """
        model = with_backward_passes(model)
        title = f"{type(model).__name__}, {model.network_name}"
        show_audit(audit(model, datamodule), json, title)

    def probe(
        self,
        model: Method,
        datamodule: ImageDataModule,
        checkpoint: str,
        blocks: list[PositiveInt] | None = None,
        epochs: PositiveInt = 100,
        learning_rates: list[PositiveFloat] = [0.03, 0.1, 0.3, 1.0],  # noqa: B006 (never changed; help shows it)
        batch_size: PositiveInt = 256,
        weight_decay: NonNegativeFloat = 0.0,
        optimizer: Literal["SGD", "Adam"] = "SGD",
        dropout: Share = 0.0,
        sigmoid: bool = False,
        augment: bool = False,
        best_on_test: bool = False,
        k: PositiveInt = 200,
        temperature: PositiveFloat = 0.1,
        random: bool = False,
        reestimate_batch_norm: bool = False,
        corrupted_images: NonNegativeInt = 0,
        label_shares: list[Share] = [1.0],  # noqa: B006 (never changed; help shows it)
        association: bool = False,
        standardise: bool = False,
        shared: bool = True,
        distilled: bool = False,
        supervised_epochs: NonNegativeInt = 0,
    ) -> None:
        """Linear probe and kNN on the frozen features of every block of a run.

        Args:
            model: the method; that of the run by default.
            datamodule: the data set; that of the run by default.
            checkpoint: run folder, or a checkpoint file in one; a folder stands for its last.ckpt.
            blocks: numbers of the blocks to probe; all by default.
            epochs: of a linear classifier.
            learning_rates: of which the best on the held-out validation images is taken for each classifier.
            batch_size: images per step of a linear classifier.
            weight_decay: of a linear classifier; 1e-6 is published.
            optimizer: of the linear classifiers; SGD has momentum 0.9.
            dropout: share of the features that a linear classifier does without in each step.
            sigmoid: cross-entropy of the classifiers' sigmoids, as is published for self-defined targets, not of their
                own outputs.
            augment: train the linear classifiers on images augmented as the data say (data.augment), whose features
                are computed anew in each epoch, as is published.
            best_on_test: also give the accuracy of the epoch that is best on the test images, as is published.
            k: number of neighbours.
            temperature: of their votes.
            random: also probe the network as it was before training.
            reestimate_batch_norm: also probe the network with BatchNorm statistics averaged over the training images,
                without augmentation, noise or dropout.
            corrupted_images: also judge the linear classifiers on so many of the test images (drawn with the seed),
                under each of the 15 corruptions of ImageNet-C at 5 severities.
            label_shares: judge linear classifiers (and associations) that know so many of the labels, drawn class by
                class with the seed.
            association: also let every output stand for the class whose images it answers most, which trains nothing.
            standardise: give linear classifiers features with mean 0 and standard deviation 1 over
                the training images, each feature by itself; it can change which features look best.
            shared: also train one linear classifier for the features of all widths of a network that has several.
            distilled: also train linear classifiers for them of which the narrower ones learn from the predictions of
                the widest one's, too, as is published.
            supervised_epochs: also train the same network with labels, end to end, for so many epochs.
        """
        protocol = Protocol(
            epochs=epochs,
            learning_rates=learning_rates,
            batch_size=batch_size,
            k=k,
            temperature=temperature,
            seed=datamodule.seed,
            weight_decay=weight_decay,
            optimizer=optimizer,
            dropout=dropout,
            sigmoid=sigmoid,
            augment=augment,
            best_on_test=best_on_test,
            corrupted_images=corrupted_images,
            label_shares=label_shares,
            association=association,
            standardise=standardise,
            shared=shared,
            distilled=distilled,
        )
        controls = random, reestimate_batch_norm, supervised_epochs
        run = partial(probe_run, model, datamodule, self, Path(checkpoint), protocol, blocks, *controls)
        in_all(self, datamodule, run)

    def observe(
        self,
        model: Method,
        datamodule: ImageDataModule,
        checkpoint: str,
        reference: str | None = None,
        every: Every = "unit",
        images: PositiveInt = 2000,
        epochs: PositiveInt = 100,
        learning_rates: list[PositiveFloat] = [0.03, 0.1, 0.3, 1.0],  # noqa: B006 (never changed; help shows it)
        batch_size: PositiveInt = 256,
        recover_epochs: NonNegativeInt = 0,
    ) -> None:
        """Observe the hidden layers of a run: how well they separate the classes, beside those of another run.

        Args:
            model: the method; that of the run by default.
            datamodule: the data set; that of the run by default.
            checkpoint: run folder, or a checkpoint file in one; a folder stands for its last.ckpt.
            reference: the same of another run of the same network, say trained end to end, to compare with.
            every: observe the output of every unit of the network, or of every block.
            images: at most so many of each split, drawn with the seed.
            epochs: of a linear classifier.
            learning_rates: of which the best on the held-out validation images is taken for each classifier.
            batch_size: images per step of a linear classifier.
            recover_epochs: also keep the first blocks, one more at a time, and train all behind them anew for so many
                epochs, with the labels of all training images: the accuracy that can be recovered. 0: do not.

        Raises:
            UsageError: the method's network is no chain of units.
        """
        if not isinstance(model, LocalLearning):
            raise UsageError(f"observe reads the units of a network, and {type(model).__name__} has none: use probe.")
        protocol = Protocol(epochs, learning_rates, batch_size, seed=datamodule.seed)
        other = Path(reference) if reference else None
        run = partial(observe_run, model, datamodule, self, Path(checkpoint), other, every, images, protocol)
        in_all(self, datamodule, partial(run, recover_epochs))


def cpu_has_bfloat16() -> bool:
    """Whether this machine's processor multiplies matrices of bfloat16; also true where torch cannot tell."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    capabilities = tell() if tell else {}
    known = [capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")]
    return any(known) or all(one is None for one in known)


def with_backward_passes(model: Method) -> LocalLearning:
    """The method, if it has backward passes whose time and memory can be told.

    Raises:
        UsageError: the method has none.
    """
    if not isinstance(model, LocalLearning):
        raise UsageError(
            f"cost and bench compare backward passes with backpropagation's, and {type(model).__name__} has none. "
            "Its time is in the summary of a run: use fit."
        )
    return model
