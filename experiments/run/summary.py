"""``summary.json``: what a finished run reached."""

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from datamodules.base import ImageDataModule
from experiments.callbacks.meter import Meter
from experiments.measure.cost import network_cost
from experiments.run.folder import SUMMARY
from models.local_learning import LocalLearning
from models.method import Method

PACKAGES = ("torch", "torchvision", "lightning", "local-learning")


def summarise(
    name: str,
    seed: int,
    model: Method,
    data: ImageDataModule,
    trainer: L.Trainer,
    meter: Meter,
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """The summary of a finished run, as it is written to ``summary.json``.

    Args:
        name: name of the run folder.
        seed: seed of the run.
        model: the trained model.
        data: what it was trained on.
        trainer: the trainer that trained it.
        meter: what measured its speed and memory.
        metrics: final figures under their logged names.
    """
    device = trainer.strategy.root_device
    return {
        "name": name,
        "method": type(model).__name__,
        "network": model.network_name,
        "dataset": data.name,
        "seed": seed,
        "num_blocks": model.num_blocks,
        "num_groups": model.num_groups,
        "batch_size": data.batch_size,
        "epochs": trainer.current_epoch,
        "global_step": trainer.global_step,
        "seconds": meter.seconds,
        "images_per_second": meter.images_per_second,
        "peak_activation_bytes": meter.peak_activation_bytes,
        **_macs(model, data.batch_size),
        "parameters": sum(p.numel() for p in model.parameters()),
        "precision": str(trainer.precision),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "metrics": {key: float(value) for key, value in sorted(metrics.items())},
    }


def _macs(model: Method, batch_size: int) -> dict[str, int]:
    """What a forward pass costs; nothing of a method without backward passes, which ``cost`` does not know."""
    if not isinstance(model, LocalLearning):
        return {}
    cost = network_cost(model, batch_size)
    return {
        "slowest_node_macs": cost.slowest_node_macs,
        "inference_macs": cost.inference_macs,
        "ensemble_macs": cost.total_macs,
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.json``."""
    write_json(folder / SUMMARY, summary)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one move: it is there whole, or not at all."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(unfinished, path)


def log_to_hparams(summary: Mapping[str, Any], trainer: L.Trainer) -> None:
    """Fill TensorBoard's HPARAMS tab: one line per run with its setting and final test accuracy."""
    setting = {
        key: summary[key]
        for key in ("method", "network", "dataset", "num_blocks", "num_groups", "batch_size", "epochs", "seed")
    }
    figures = {key: value for key, value in summary["metrics"].items() if key in ("test/top1", "test/ensemble/top1")}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(setting, figures)
            logger.finalize("success")


def show_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Print each block's accuracy, the model's, and where to look further."""
    metrics = summary["metrics"]
    table = Table(title=f"{summary['method']}, {summary['network']}, {summary['dataset']}", title_justify="left")
    count = summary["num_blocks"]
    blocks = range(1, count + 1)
    last = "final head" if "test/final/top1" in metrics else "last block"
    rows = {"input": "input/top1"} | {f"block {k}": f"block{k}/top1" for k in blocks}
    rows |= {f"block {count}, group 1": f"block{count}/group1/top1"}
    rows |= {"ensemble": "ensemble/top1", f"model ({last})": "top1"}
    columns = {"validation": "val/", "test": "test/"}
    if "test/top1" not in metrics:  # trained without labels
        rows, columns = (
            {f"block {k}": f"block{k}/gap/top1" for k in blocks},
            {"online probe, validation": "probe_online/"},
        )
    for heading in ("top-1 %", *columns):
        table.add_column(heading, justify="left" if heading == "top-1 %" else "right")
    for title, key in rows.items():
        if all(split + key in metrics for split in columns.values()):
            table.add_row(title, *(f"{100 * metrics[split + key]:.2f}" for split in columns.values()))
    Console().print(table)
    speed, memory = summary["images_per_second"], summary["peak_activation_bytes"]
    figures = [
        f"{summary['epochs']} epoch{'s' if summary['epochs'] != 1 else ''}",
        f"{summary['global_step']} steps",
        f"{summary['seconds']:.1f} s",
    ]
    figures += [f"{speed:,.0f} images/s in training alone"] if speed else []
    figures += [f"{memory / 2**20:.1f} MiB of activations at most"] if memory else []
    print("\n".join([", ".join(figures), *_spared(metrics)]))
    print(f"Run folder: {folder}\nTo watch:   tensorboard --logdir {folder}")
    if "test/top1" not in metrics:
        print(f"To judge:   python -m experiments probe --checkpoint {folder}")


def _spared(metrics: Mapping[str, float]) -> list[str]:
    """What was sent and what was left out, a line each, if the run noted it."""
    lines = []
    if "communication/bits_per_parameter" in metrics:
        bits, ratio, megabytes = (
            metrics[f"communication/{key}"] for key in ("bits_per_parameter", "ratio", "megabytes")
        )
        less = f", {ratio:.1f} × less than float32" if ratio > 1 else ""
        lines.append(f"Sent:       {bits:.2f} bits per parameter{less}, {megabytes:.1f} MB")
    if "train/saved" in metrics:
        lines.append(f"Left out:   {100 * metrics['train/saved']:.1f} % of the training images' visits")
    return lines
