"""What the command line can do with a model besides training: each command's options are a method's arguments."""

from pathlib import Path

import lightning.pytorch as L
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from datamodules import ImageDataModule
from experiments.bench import bench, show_bench
from experiments.cost import show_cost
from experiments.probe import Protocol, probe_run
from models import LocalLearning
from models.networks.profile import Convention


class Trainer(L.Trainer):
    """Lightning's Trainer with three more things to do with a model: ``cost``, ``bench`` and ``probe``."""

    def cost(
        self,
        model: LocalLearning,
        datamodule: ImageDataModule,
        json: bool = False,
        convention: Convention = "published",
    ) -> None:
        """Show parameters, MACs, activation bytes and bytes handed on of every node, without training.

        Args:
            model: the method.
            datamodule: the data set.
            json: print JSON instead of a table.
            convention: count MACs as the GN-DGL paper does (BatchNorm, ReLU, pooling and biases
                included), or only those of convolutions and matrix products.
        """
        show_cost(model, datamodule.batch_size, convention, json)

    def bench(
        self,
        model: LocalLearning,
        datamodule: ImageDataModule,
        json: bool = False,
        steps: int = 10,
        repetitions: int = 5,
    ) -> None:
        """Measure images/s, step time and peak activation memory against ordinary backprop.

        Args:
            model: the method.
            datamodule: the data set; random images of its shape are used.
            json: print JSON instead of a table.
            steps: training steps per repetition.
            repetitions: alternating repetitions of each contender; medians are reported.
        """
        show_bench(bench(model, datamodule, self, steps, repetitions), json)

    def probe(
        self,
        model: LocalLearning,
        datamodule: ImageDataModule,
        checkpoint: str,
        blocks: list[int] | None = None,
        epochs: PositiveInt = 100,
        learning_rates: list[PositiveFloat] = [0.03, 0.1, 0.3, 1.0],  # noqa: B006 (never changed; help shows it)
        batch_size: PositiveInt = 256,
        k: PositiveInt = 200,
        temperature: PositiveFloat = 0.1,
        random: bool = False,
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
            k: number of neighbours.
            temperature: of their votes.
            random: also probe the network as it was before training.
            supervised_epochs: also train the same network with labels, end to end, for so many epochs.
        """
        protocol = Protocol(epochs, learning_rates, batch_size, k, temperature, datamodule.seed)
        probe_run(model, datamodule, self, Path(checkpoint), protocol, blocks, random, supervised_epochs)
