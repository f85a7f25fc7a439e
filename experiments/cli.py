"""The command line: LightningCLI with a run folder around it, and six commands of our own."""

import argparse
import contextlib
import io
import logging
import pkgutil
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

import datamodules
import models
from datamodules.base import ImageDataModule
from datamodules.files import DataError
from experiments import callbacks, distributed
from experiments.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from experiments.callbacks.communication_log import CommunicationLog
from experiments.callbacks.meter import Meter
from experiments.callbacks.online_probe import OnlineProbe
from experiments.callbacks.predictions import PredictionsFile
from experiments.callbacks.progress import BlockProgressBar, CutTable, EpochLines
from experiments.callbacks.tensorboard import TensorBoardPage
from experiments.distributed.strategy import CompressedDDP
from experiments.measure.allocator import keep_freed_memory
from experiments.measure.cost import macs_of
from experiments.parser import Parser, swallowed
from experiments.report.command import main as report_command
from experiments.run import folder as run_folder
from experiments.run.errors import RunError
from experiments.run.loggers import RunCSVLogger, RunTensorBoardLogger
from experiments.run.saved_config import SavedConfig
from experiments.run.summary import log_to_hparams, show_summary, summarise, write_summary
from experiments.suite import main as suite_command
from experiments.trainer import Trainer
from losses.errors import UsageError
from models.method import Method, require_supported_processes

FAULTS = (UsageError, DataError, MisconfigurationException)  # the last is Lightning's own
"""Faults of use: reported in one sentence, without a traceback."""


OF_A_RUN = ("probe", "observe")
"""Commands of a finished run, whose own config they take."""

DESCRIPTION = """Local learning: networks trained block by block.
Besides the commands below: suite S.yaml runs a list or grid of configs, report RUNS... compares finished runs."""


def import_all(*packages: ModuleType) -> None:
    """Import every file of packages, so that their classes are known by their short names: ``--model NeuronGroups``."""
    for package in packages:
        for file in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            import_module(file.name)


class LocalLearningCLI(LightningCLI):
    """Lightning's commands and ``cost``, ``bench``, ``probe`` and ``observe`` of a model on data."""

    def __init__(self, args: Sequence[str]) -> None:
        self.asked = args[0] if args else None
        import_all(models, datamodules, callbacks, distributed)
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
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "python -m experiments", "description": DESCRIPTION, "allow_abbrev": False},
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:
        """Lightning's commands and ours, with the arguments that are not options; the asked one alone if it is known.

        The parser of a command takes longer to build than to use.
        """
        ours = {"model", "datamodule"}
        every = {**LightningCLI.subcommands(), "cost": ours, "bench": ours, "probe": ours, "observe": ours}
        return {self.asked: every[self.asked]} if self.asked in every else every

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the run folder; what the model and the data take from elsewhere."""
        parser.add_argument(
            "--name", type=str | None, default=None, help="Run folder's name; made from the config by default."
        )
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all run folders.")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")
        parser.link_arguments("data.image_shape", "model.init_args.image_shape", apply_on="instantiate")
        parser.link_arguments("data.mean", "model.init_args.image_mean", apply_on="instantiate")
        parser.link_arguments("data.std", "model.init_args.image_std", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, then settle the run folder and the checkpoint before anything is built."""
        self.config = parser.parse_args(args)
        options = self.config[self.config.subcommand]
        asked = options.get("ckpt_path")
        name = run_folder.default_name(options.as_dict())
        self.checkpoint: dict[str, Any] = {}
        self.reached = 0
        if self.config.subcommand in OF_A_RUN:
            self.folder = run_folder.find_checkpoint(Path(options.checkpoint)).absolute().parents[1]
        elif asked in ("last", "best"):
            self.folder = run_folder.inherited() or run_folder.choose(
                Path(options.runs), options.name, name, resume=True
            )
            options.ckpt_path = str(self.folder / (run_folder.LAST if asked == "last" else run_folder.BEST))
        elif asked and not options.name and Path(asked).absolute().parent.name == Path(run_folder.LAST).parent.name:
            self.folder = Path(asked).absolute().parents[1]
        else:
            self.folder = run_folder.inherited() or run_folder.choose(
                Path(options.runs), options.name, name, resume=bool(asked)
            )
        run_folder.hand_down(self.folder)
        if asked:
            self.checkpoint = run_folder.load_checkpoint(Path(options.ckpt_path))
            self.reached = self.checkpoint.get("epoch", -1) + 1

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The Trainer, with the loggers and callbacks that write the run folder."""
        options = self._get(self.config_init, "trainer")
        callbacks: list[L.Callback] = []
        if options.enable_progress_bar is not False:
            # A bar that redraws itself is noise in a pipe or a file: a line per epoch there.
            screen = sys.stdout.isatty()
            callbacks = [BlockProgressBar(refresh_rate=10)] if screen else [BlockProgressBar(0), EpochLines()]
        asked = options.logger if isinstance(options.logger, list) else [options.logger]
        loggers = [logger for logger in asked if isinstance(logger, Logger)]
        if self.subcommand == "fit":
            self.meter = Meter()
            callbacks += [CutTable(), self.meter]
            if isinstance(options.strategy, CompressedDDP):
                callbacks.append(CommunicationLog(options.strategy.hook))
            model = self._get(self.config_init, "model")
            given = options.callbacks if isinstance(options.callbacks, list) else [options.callbacks]
            if not model.predicts_classes and not any(isinstance(one, OnlineProbe) for one in given):
                callbacks.append(OnlineProbe())
            if not options.fast_dev_run:
                step = self.checkpoint.get("global_step", 0)
                loggers = [RunTensorBoardLogger(self.folder, step), RunCSVLogger(self.folder, step), *loggers]
                callbacks.append(TensorBoardPage())
                if options.enable_checkpointing is not False:
                    callbacks.append(LastCheckpoint(self.folder))
                    if model.monitor:
                        callbacks.append(BestCheckpoint(self.folder, model.monitor))
        elif self.subcommand == "predict":
            callbacks.append(PredictionsFile(self.folder / run_folder.PREDICTIONS))
        self.trainer_defaults["callbacks"] = callbacks
        kwargs |= {"logger": loggers, "default_root_dir": str(self.folder)}
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """See that the model trains in as many processes, and that the checkpoint fits, before Lightning starts."""
        if self.subcommand in LightningCLI.subcommands():  # ours run in one process, whatever the run they look at
            require_supported_processes(self.model, self.trainer)
        if self.checkpoint:
            path = Path(self._get(self.config, "ckpt_path"))
            run_folder.require_same_network(path, self.checkpoint["state_dict"], self.model)
            self.checkpoint = {}

    def before_fit(self) -> None:
        """Make the run folder.

        Raises:
            RunError: the run has had its epochs already.
        """
        if self.reached and (self.folder / run_folder.SUMMARY).is_file() and self.trainer.max_epochs <= self.reached:
            advice = "" if self.model.schedule.epochs else " To go on, raise --trainer.max_epochs."
            raise RunError(f"{self.folder} is finished ({self.reached} epochs).{advice}")
        if not self.trainer.fast_dev_run and self.trainer.is_global_zero:
            run_folder.create(self.folder)

    def before_validate(self) -> None:
        """See that there are predictions to evaluate.

        Raises:
            UsageError: the network is trained without labels.
        """
        if not self.model.predicts_classes:
            raise UsageError(
                f"A network trained without labels predicts no classes. Judge it with: probe --checkpoint {self.folder}"
            )

    before_test = before_predict = before_validate

    def fit(self, **arguments: Any) -> None:
        """Lightning's ``fit``; a new run that failed before its first step leaves no folder behind."""
        try:
            self.trainer.fit(**arguments)
        except FAULTS:
            if self.trainer.global_step == 0 and self.trainer.is_global_zero:
                run_folder.discard_empty(self.folder)
            raise

    def after_fit(self) -> None:
        """Evaluate the test split once with the final weights; write and show the summary."""
        metrics = dict(self.trainer.callback_metrics)
        epochs, step = self.trainer.current_epoch, self.trainer.global_step
        self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        if self.trainer.fast_dev_run:
            return
        metrics |= self.trainer.callback_metrics
        if not any(
            name.startswith(("val/", "probe_online/")) for name in metrics
        ):  # cut off between the last epoch and here
            metrics |= self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)[0]
        if not self.trainer.is_global_zero:
            return
        config = self.config[self.subcommand].as_dict()
        measured = {key: getattr(self.meter, key) for key in ("seconds", "images_per_second", "peak_activation_bytes")}
        measured |= macs_of(self.model, self.datamodule.batch_size)
        summary = summarise(self.folder.name, config, self.model, self.datamodule, self.trainer, measured, metrics)
        write_summary(self.folder, summary | {"epochs": epochs, "global_step": step})
        log_to_hparams(summary, self.trainer)
        show_summary(self.folder, summary)


def _fault_of_line(args: Sequence[str]) -> str | None:
    """What is wrong with a command line, None if nothing is: it is parsed, and nothing is built or run."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            LocalLearningCLI([*args, "--print_config"])  # which ends the parsing with an exit
    except SystemExit as stop:
        return said.getvalue().strip().removeprefix("error: ") if stop.code else None
    return None


COMMANDS = {"suite": partial(suite_command, fault_of=_fault_of_line), "report": report_command}
"""Commands that take no model; all others are LightningCLI's."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; faults of use end with one sentence on stderr and exit code 2.

    Args:
        args: command and options; those of the process by default.
    """
    args = list(sys.argv[1:] if args is None else args)
    keep_freed_memory()
    _quiet()
    try:
        if args and args[0] in COMMANDS:
            COMMANDS[args[0]](args[1:])
        else:
            args = _with_config_of_run(args) if args[:1] and args[0] in OF_A_RUN else args
            LocalLearningCLI(["--json=true" if arg == "--json" else arg for arg in args])
    except SIGTERMException as stop:
        raise SystemExit(128 + signal.SIGTERM) from stop
    except KeyboardInterrupt as stop:  # of a training it was told already
        raise SystemExit(128 + signal.SIGINT) from stop
    except Exception as error:  # of any class: jsonargparse wraps what constructors raise; others go on up
        fault = _fault_behind(error) or swallowed(error)
        if fault is None:
            raise
        who = f"process {rank}: " if (rank := run_folder.process_rank()) else ""
        print(f"{who}error: {fault}", file=sys.stderr)
        raise SystemExit(2) from error
    finally:
        run_folder.release()


def _with_config_of_run(args: Sequence[str]) -> list[str]:
    """``probe --checkpoint RUN …``, and ``observe``: the run's own config comes first, all else overrides it.

    Raises:
        RunError: no run is given, or there is none, or a configuration of a training is given for the protocol.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--config", type=Path, action="append", default=[])
    known, others = parser.parse_known_args(args)
    if known.checkpoint is None:
        if not any(arg in ("-h", "--help") or re.match(r"--\w+\.help", arg) for arg in others):
            raise RunError(f"{args[0]} needs a finished run: give --checkpoint RUN, its folder.")
        return list(args)
    for path in known.config:
        if path.is_file() and "model" in (yaml.safe_load(path.read_text()) or {}):
            raise RunError(
                f"{path} trains a model; how to {args[0]} a run is said as in experiments/configs/probe/digits.yaml."
            )
    config = run_folder.find_checkpoint(known.checkpoint).absolute().parents[1] / run_folder.CONFIG
    return [args[0], "--config", str(config), *args[1:]]


def _fault_behind(error: BaseException | None) -> BaseException | None:
    """The fault of use that an error is, or was raised from: jsonargparse wraps what constructors raise."""
    while error is not None and not isinstance(error, FAULTS):
        error = error.__cause__
    return error


def _quiet() -> None:
    """Silence advice that does not apply here: data in memory needs no workers, batches no logger."""
    for logger in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.distributed"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    for message in (
        ".*sync_dist=True.*",  # every process evaluates all images: there is nothing to add up
        ".*treespec.*is deprecated.*",
        ".*no `val_dataloader`.*",
        ".*callbacks used to create the checkpoint.*",
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=message)
