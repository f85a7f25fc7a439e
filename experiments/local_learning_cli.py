"""Commands of a model on data: LightningCLI's own, and ``cost``, ``bench``, ``probe`` and ``observe``."""

import contextlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as L
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from typing_extensions import override

import datamodules
import losses
import models
from datamodules.base import ImageDataModule
from experiments import callbacks, distributed
from experiments.callbacks.best_checkpoint import BestCheckpoint
from experiments.callbacks.communication_log import CommunicationLog
from experiments.callbacks.cut_table import CutTable
from experiments.callbacks.epoch_lines import EpochLines
from experiments.callbacks.last_checkpoint import LastCheckpoint
from experiments.callbacks.meter import Meter
from experiments.callbacks.online_probe import OnlineProbe
from experiments.callbacks.predictions import PredictionsFile
from experiments.callbacks.progress_bar import BlockProgressBar
from experiments.callbacks.read_test_split import ReadTestSplit
from experiments.callbacks.tensorboard import TensorBoardPage
from experiments.distributed.strategy import CompressedDDP
from experiments.measure.audit import fresh_copy, locality
from experiments.measure.cost import macs_of
from experiments.named_configs import probe_config
from experiments.parser import Parser
from experiments.refusals import FAULTS, build, in_one_line, plain_seed, raised_in, refusals_told, require_plain
from experiments.run.checkpoint import load_checkpoint, require_same_network
from experiments.run.errors import RunError
from experiments.run.files import PREDICTIONS, SUMMARY
from experiments.run.folder import RunFolder
from experiments.run.loggers import RunCSVLogger, RunTensorBoardLogger
from experiments.run.restoring import Restoring
from experiments.run.saved_config import AS_PARSED, SavedConfig
from experiments.run.summary import log_to_hparams, show_summary, summarise, write_json
from experiments.run.written import WholeCheckpoints
from experiments.trainer import Trainer
from losses.errors import UsageError
from models.method import Method, require_supported_processes

DESCRIPTION = """Local learning: networks trained block by block.
Besides the commands below: suite S.yaml runs a list or grid of configs, report RUNS... compares finished runs."""

FROM_THE_DATA = {"num_classes": "num_classes", "image_shape": "image_shape", "mean": "image_mean", "std": "image_std"}
"""What a model takes from the data: attribute → argument."""

_OURS = [name for name in vars(Trainer) if not name.startswith("_")]
OF_A_RUN = [name for name in _OURS if "checkpoint" in inspect.signature(getattr(Trainer, name)).parameters]
"""Commands of a finished run."""

COMMANDS = {**LightningCLI.subcommands(), **{name: {"model", "datamodule"} for name in _OURS}}
"""Command → those arguments of the Trainer's method that are not options."""


class LocalLearningCLI(LightningCLI):
    """Builds a model, data and a Trainer from the command line, and calls one of the Trainer's methods."""

    def __init__(self, args: Sequence[str]) -> None:
        self.asked = args[0] if args else ""
        for package in (models, losses, datamodules, callbacks, distributed):
            Parser.known.update(import_all(package))
        super().__init__(
            Method,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=Trainer,
            parser_class=Parser,
            # The data modules share batches out among processes themselves, exactly.
            trainer_defaults={"devices": 1, "enable_model_summary": False, "use_distributed_sampler": False},
            save_config_callback=SavedConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # it would keep this object in every network: see _keep_arguments
            parser_kwargs={"prog": "local-learning", "description": DESCRIPTION, "allow_abbrev": False},
            args=list(args),
        )

    # -- parsing --------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static in Lightning
        """The asked command alone, if it is known: a command's parser takes longer to build than to use."""
        return {self.asked: COMMANDS[self.asked]} if self.asked in COMMANDS else COMMANDS

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name", type=str | None, default=None, help="Run folder's name; made from the config by default."
        )
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all run folders.")
        if self.asked == "predict":
            parser.add_argument(
                "--images",
                type=str | None,
                default=None,
                help="Folder of images without labels, to predict in place of the test split.",
            )
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=plain_seed)
        for attribute, argument in FROM_THE_DATA.items():
            parser.link_arguments(f"data.{attribute}", f"model.init_args.{argument}", apply_on="instantiate")
        parser.add_instantiator(build, object)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then settle the run folder and the checkpoint before anything is built."""
        try:
            self.config = parser.parse_args(args)
        except (ValueError, OverflowError, RecursionError) as fault:  # jsonargparse's own are told by the parser
            raise UsageError(f"The options cannot be read: {' '.join(str(fault).split())}.") from fault
        options = self.config[self.config.subcommand]
        require_plain(options)
        given = options.model.get("init_args") or {}
        if taken := [name for name in FROM_THE_DATA.values() if given.get(name) is not None]:
            raise UsageError(f"--model.{taken[0]} is taken from the data: leave it out.")
        self.run = RunFolder.of(options.as_dict())
        self.run.hand_down()
        self.checkpoint: dict[str, Any] = {}
        self._predictions = PREDICTIONS
        if (asked := options.get("ckpt_path")) is not None:
            file = self.run.checkpoint(asked)
            options.ckpt_path = file and str(file)
        if options.get("ckpt_path"):
            self.checkpoint = load_checkpoint(Path(options.ckpt_path))
        elif self.config.subcommand in ("validate", "test", "predict"):
            raise UsageError(
                f"{self.config.subcommand} needs trained weights: give --ckpt_path RUN/checkpoints/last.ckpt."
            )
        if self.config.subcommand == "predict" and options.images:
            self._predictions = f"predictions-{Path(options.images).resolve().name}.csv"
            options.data = self._unlabelled(options.images, options.data)
        self.epochs_done = self.checkpoint.get("epoch", -1) + 1
        self.reached = self.checkpoint.get("metrics", {})

    def _unlabelled(self, images: str, like: Namespace) -> Namespace:
        """The data that are the images of a folder; the checkpoint knows the classes, an older one their number."""
        numbers = [str(label) for label in range(self.checkpoint.get("arguments", {}).get("num_classes", 0))]
        arguments = Namespace(images=images, like=like, classes=self.checkpoint.get("classes", numbers))
        return Namespace(class_path="datamodules.unlabelled.UnlabelledImages", init_args=arguments)

    # -- building -------------------------------------------------------------------------------

    @override
    def instantiate_classes(self) -> None:
        """Build model, data and Trainer; what refuses a value says so in one sentence."""
        with refusals_told():
            super().instantiate_classes()

    @override
    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The Trainer, with what watches the run and writes its folder besides what the config names."""
        options, training = self._get(self.config_init, "trainer"), self.subcommand == "fit"
        self.meter = Meter()
        watching = [
            *_on_screen(options.enable_progress_bar),
            *(self._in_training(options) if training else ()),
            *([PredictionsFile(self.run.path / self._predictions)] if self.subcommand == "predict" else ()),
        ]
        self.trainer_defaults["callbacks"] = watching
        loggers = [one for one in _listed(options.logger) if isinstance(one, Logger)]
        if training and not options.fast_dev_run:
            step = self.checkpoint.get("global_step", 0)
            loggers = [RunTensorBoardLogger(self.run.path, step), RunCSVLogger(self.run.path, step), *loggers]
        trainer = super().instantiate_trainer(logger=loggers, default_root_dir=str(self.run.path), **kwargs)
        if trainer.world_size == 1:  # whatever RANK or SLURM_PROCID say, by which Lightning decides who may log
            rank_zero_only.rank = 0  # type: ignore[attr-defined]  # Lightning sets it, too
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # and none of the user's own
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        trainer._checkpoint_connector = Restoring(trainer)
        return trainer

    def _in_training(self, options: Any) -> Iterator[L.Callback]:
        """What watches a training and saves it, in this order."""
        model = self._get(self.config_init, "model")
        yield ReadTestSplit()
        yield CutTable()
        yield self.meter
        if isinstance(options.strategy, CompressedDDP):
            yield CommunicationLog(options.strategy.hook)
        if not model.predicts_classes and not any(isinstance(one, OnlineProbe) for one in _listed(options.callbacks)):
            yield OnlineProbe()
        if options.fast_dev_run:
            return
        yield TensorBoardPage()
        if options.enable_checkpointing is not False:
            if model.monitor:
                yield BestCheckpoint(self.run.path, model.monitor)
            yield LastCheckpoint(self.run.path, self.reached)

    @override
    def after_instantiate_classes(self) -> None:
        """See that the model trains in as many processes, and that the checkpoint fits, before Lightning starts."""
        if self.subcommand in LightningCLI.subcommands():  # ours train nothing in several processes
            require_supported_processes(self.model, self.trainer)
        if self.checkpoint:
            path = Path(self._get(self.config, "ckpt_path"))
            require_same_network(path, self.checkpoint, self.model)
            self.checkpoint = {}

    # -- running --------------------------------------------------------------------------------

    def fit(self, **arguments: Any) -> None:
        """Train in the run folder, then evaluate the test split once with the final weights; write the summary.

        Raises:
            RunError: the run has had its epochs already.
        """
        self._keep_arguments()
        writes = self.trainer.is_global_zero and not self._get(self.config, "trainer").fast_dev_run
        with self.run.written() if writes else contextlib.nullcontext():
            self._refuse_finished()  # here, for a run that was killed at its very end to lose its mark
            fresh = fresh_copy(self.model) if writes else None
            self._train(**arguments)
            self._evaluate(fresh, writes)

    def _refuse_finished(self) -> None:
        if self.epochs_done and self.run.is_finished and self.trainer.max_epochs <= self.epochs_done:
            advice = "" if self.model.schedule.epochs else " To go on, raise --trainer.max_epochs."
            raise RunError(f"{self.run.path} is finished ({self.epochs_done} epochs).{advice}")

    def _train(self, **arguments: Any) -> None:
        """Lightning's ``fit``; a new run that was refused before its first step leaves no folder behind."""
        try:
            self.trainer.fit(**arguments)
        except (*FAULTS, OSError, ValueError) as fault:  # what values, data or disks are at fault for
            if self.trainer.global_step:
                raise
            self.run.discard_empty()
            if isinstance(fault, ValueError) and raised_in(fault).startswith("lightning."):
                raise UsageError(in_one_line(fault)) from fault
            raise

    def _evaluate(self, fresh: Method | None, writes: bool) -> None:
        metrics: dict[str, Any] = self.reached | self.trainer.callback_metrics
        self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        if self._get(self.config, "trainer").fast_dev_run:
            return
        metrics |= self.trainer.callback_metrics
        if not any(name.startswith(("val/", "probe_online/")) for name in metrics):  # cut off after the last epoch
            for found in self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False):
                metrics |= found  # nothing with --trainer.limit_val_batches 0
        if writes:
            name, config = self.run.path.name, self.config[self.subcommand].as_dict()
            took = {key: getattr(self.meter, key) for key in ("seconds", "images_per_second", "peak_activation_bytes")}
            took |= macs_of(self.model, self.datamodule.batch_size) | locality(fresh, self.datamodule)
            summary = summarise(name, config, self.model, self.datamodule, self.trainer, took, metrics)
            log_to_hparams(summary, self.trainer)
            write_json(self.run.path / SUMMARY, summary)  # last: with it the run is finished
            show_summary(self.run.path, summary, probe_config(type(self.model)))

    def _keep_arguments(self) -> None:
        """Note in the model, and so in its checkpoints, what it was built from: ``load_from_checkpoint`` goes by it."""
        text = self._parser(self.subcommand).dump(self.config[self.subcommand], **AS_PARSED)
        config = yaml.safe_load(text)["model"]
        taken = LightningArgumentParser().add_class_arguments(type(self.model), fail_untyped=False)
        linked = {name: getattr(self.datamodule, its) for its, name in FROM_THE_DATA.items() if name in taken}
        self.model.keep_arguments(config.get("init_args", {}) | config.get("dict_kwargs", {}) | linked)

    def before_validate(self) -> None:
        """See that there are predictions to evaluate.

        Raises:
            UsageError: the network is trained without labels.
        """
        if not self.model.predicts_classes:
            raise UsageError(
                "A network trained without labels predicts no classes. "
                f"Judge it with: probe --checkpoint {self.run.path}"
            )

    before_test = before_predict = before_validate


def import_all(package: ModuleType) -> set[str]:
    """Import every file of a package, so that its classes are known by their names: ``--model NeuronGroups``; those."""
    files = [import_module(file.name) for file in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return {name for file in files for name, _ in inspect.getmembers(file, inspect.isclass)}


def _on_screen(progress_bar: bool | None) -> list[L.Callback]:
    """A progress bar; in a pipe or a file, where one that redraws itself is noise, a line per epoch."""
    if progress_bar is False:
        return []
    return [BlockProgressBar(refresh_rate=10)] if sys.stdout.isatty() else [BlockProgressBar(0), EpochLines()]


def _listed(one_or_several: Any) -> list[Any]:
    return one_or_several if isinstance(one_or_several, list) else [one_or_several]
