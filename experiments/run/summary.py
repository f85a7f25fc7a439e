"""``summary.json``: what a finished run reached."""

import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from datamodules.base import ImageDataModule
from experiments.run import tables
from experiments.run.written import in_one_move
from models.method import Method

PACKAGES = ("torch", "torchvision", "lightning", "local-learning")


def summarise(
    name: str,
    config: Mapping[str, Any],
    model: Method,
    data: ImageDataModule,
    trainer: L.Trainer,
    measured: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """The summary of a finished run, as it is written to ``summary.json``.

    ``measured`` is what the training took (``seconds``, ``images_per_second``, ``peak_activation_bytes``, MACs) and how
    local it is; ``metrics`` are the final ones under their logged names.
    """
    device = trainer.strategy.root_device
    return {
        "name": name,
        "method": type(model).__name__,
        "network": model.network_name,
        "dataset": data.name,
        "seed": config["seed_everything"],
        "callbacks": changing_callbacks(config),
        "num_blocks": model.num_blocks,
        "num_groups": model.num_groups,
        "batch_size": data.batch_size * data.replica[1],
        "processes": trainer.world_size,
        "epochs": trainer.current_epoch,
        "global_step": trainer.global_step,
        **measured,
        "parameters": sum(p.numel() for p in model.parameters()),
        "precision": str(trainer.precision),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "metrics": {key: float(value) for key, value in sorted(metrics.items())},
    }


def changing_callbacks(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The callbacks of a configuration whose class says that it ``changes_training``, with their arguments."""
    callbacks = config["trainer"]["callbacks"] or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    return [one for one in callbacks if getattr(resolve_name(one["class_path"]), "changes_training", False)]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one move: it is there whole, or not at all."""
    with in_one_move(path) as part:
        part.write_text(json.dumps(content, indent=2, default=str) + "\n")  # a callback's argument may be a path


def log_to_hparams(summary: Mapping[str, Any], trainer: L.Trainer) -> None:
    """Fill TensorBoard's HPARAMS tab: one line per run with its setting and final test accuracy."""
    settings = ("method", "network", "dataset", "num_blocks", "num_groups", "batch_size", "epochs", "seed")
    setting = {key: summary[key] for key in settings}
    metrics = {key: value for key, value in summary["metrics"].items() if key in ("test/top1", "test/ensemble/top1")}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(setting, metrics, step=trainer.global_step)  # a resume forgets it, and does it again
            logger.experiment.close()


def show_summary(folder: Path, summary: Mapping[str, Any], probe: str | None = None) -> None:
    """Print each block's accuracy, the model's, and where to look further.

    Args:
        folder: of the run.
        summary: what :func:`summarise` gives.
        probe: name of a config that judges such a run.
    """
    metrics, last = summary["metrics"], summary["num_blocks"]
    labelled = "test/top1" in metrics
    judged = {"validation": "val/{}top1", "test": "test/{}top1"}
    judged |= {"test, views": "test/views/{}top1"} if "test/views/top1" in metrics else {}
    if not labelled:
        kinds = [name.split("/")[2] for name in metrics if name.startswith("probe_online/")]
        judged = {"online probe, validation": f"probe_online/{{}}{''.join(kinds[:1])}/top1"}
    beside = {"final": "final head", "sum": "sum of goodnesses"}
    whose = next((title for name, title in beside.items() if f"test/{name}/top1" in metrics), "last block")
    predictors = {
        "input": "input/",
        **{f"block {k}": f"block{k}/" for k in range(1, last + 1)},
        f"block {last}, group 1": f"block{last}/group1/",
        "ensemble": "ensemble/",
        "energy of labels": "energy/",
        f"model ({whose})": "",
    }
    found = {title: [metrics.get(name.format(what)) for name in judged.values()] for title, what in predictors.items()}
    rows = [
        [title, *("" if top1 is None else f"{100 * top1:.2f}" for top1 in row)]
        for title, row in found.items()
        if None not in row[:2]
    ]
    title = f"{summary['method']}, {summary['network']}, {summary['dataset']}"
    if rows:
        tables.show(["top-1 %", *judged], rows, words=["top-1 %"], title=title)
    print("\n".join([_effort(summary), *_spared(metrics)]))
    print(f"Run folder: {folder}\nTo watch:   tensorboard --logdir {folder}")
    if not labelled:
        print(f"To judge:   local-learning probe {f'--config {probe} ' if probe else ''}--checkpoint {folder}")


def _effort(summary: Mapping[str, Any]) -> str:
    """What the training took."""
    speed, memory = summary["images_per_second"], summary["peak_activation_bytes"]
    parts = [
        _counted(summary["epochs"], "epoch"),
        _counted(summary["global_step"], "step"),
        f"{summary['seconds']:.1f} s",
    ]
    parts += [f"{speed:,.0f} images/s in training alone"] if speed else []
    parts += [f"{memory / 2**20:.1f} MiB of activations at most"] if memory else []
    return ", ".join(parts)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _spared(metrics: Mapping[str, float]) -> Iterator[str]:
    """What was sent and what was left out, a line each, if the run noted it."""
    if "communication/bits_per_parameter" in metrics:
        bits, ratio, sent = (metrics[f"communication/{key}"] for key in ("bits_per_parameter", "ratio", "megabytes"))
        less = f", {ratio:.1f} × less than float32" if ratio > 1 else ""
        yield f"Sent:       {bits:.2f} bits per parameter{less}, {sent:.1f} MB"
    if "train/saved" in metrics:
        yield f"Left out:   {100 * metrics['train/saved']:.1f} % of the training images' visits"
