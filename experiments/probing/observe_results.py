"""What was observed of hidden layers: the tables, ``observations.json``, the run's TensorBoard page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.probing.hidden_layers import LayerMetrics, flat
from experiments.probing.observe_pictures import draw_depth
from experiments.run import tables
from experiments.run.files import OBSERVATIONS, OBSERVATIONS_PICTURE, SUMMARY
from experiments.run.loggers import RunTensorBoardLogger
from experiments.run.summary import write_json


@dataclass(frozen=True)
class Observed:
    """What was observed of one network.

    Attributes:
        checkpoint: where its weights come from.
        epoch: after which epoch they were saved, from 1.
        step: their training step.
        layers: layer → metric → value, in the order of the network.
        heads: head → metric → value.
    """

    checkpoint: Path
    epoch: int
    step: int
    layers: LayerMetrics
    heads: LayerMetrics

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.checkpoint.absolute().parents[1]

    @property
    def state(self) -> str:
        """Where in its training the network is, for the screen."""
        finished = (self.folder / SUMMARY).is_file()
        return f"step {self.step}" + ("" if finished else f": not finished, as it was after epoch {self.epoch}")


def columns(probe: str) -> dict[str, tuple[str, str]]:
    """Heading, two lines → metric and its format.

    Args:
        probe: name of the linear probe's protocol.
    """

    def three(group: str, metric: str) -> dict[str, tuple[str, str]]:
        return {f"{group}\n{part}": (f"{metric}_{part}", ".2%") for part in ("train", "test", "gap")}

    def two(group: str, metric: str, form: str) -> dict[str, tuple[str, str]]:
        return {f"{group}\n{part}": (f"{metric}_{part}", form) for part in ("train", "test")}

    return {
        **three("linear", probe),
        **three("NCM", "ncm"),
        **two("D", "fuzziness", "#.3g"),
        **two("rank", "rank", ".1f"),
        **two("CKA", "cka", ".3f"),
        "redundant\np > 0.99": ("confident_train", ".2%"),
        "redundant\nloss < 0.01": ("small_loss_train", ".2%"),
    }


def table_of(metrics: LayerMetrics, probe: str) -> tuple[list[str], list[list[str]]]:
    """Headings, and one row per layer or head; only metrics that occur; shares in %."""
    known = {metric for found in metrics.values() for metric in found}
    chosen = {heading: column for heading, column in columns(probe).items() if column[0] in known}
    cells = [[_cell(found.get(metric), form) for metric, form in chosen.values()] for found in metrics.values()]
    return ["", *chosen], [[place, *row] for place, row in zip(metrics, cells, strict=True)]


def _cell(value: float | None, form: str) -> str:
    if value is None or value != value:  # NaN: it could not be computed
        return "–"
    return f"{value:{form}}".removesuffix("%")


def markdown(metrics: LayerMetrics, probe: str) -> str:
    """The table for TensorBoard's text page."""
    return tables.markdown(*table_of(metrics, probe))


_LEGEND = """linear, NCM: top-1 % of a linear probe and of the nearest class mean. D: separation fuzziness.
rank: effective rank. CKA: alignment with the reference. redundant: % of the training images, by the head of a block."""


def show(observed: Sequence[Observed], about: Mapping[str, Any]) -> None:
    """Print a table of layers and one of heads per network, the run first."""
    images = about["images"]
    print(
        f"{about['network']}, {about['dataset']}: {images['train']} training, {images['test']} test images\n{_LEGEND}"
    )
    for network, role in zip(observed, ("run", "reference"), strict=False):
        print(f"\n{role}: {network.checkpoint}, {network.state}")
        for metrics in (network.layers, network.heads) if network.heads else (network.layers,):
            tables.show(*table_of(metrics, about["probe"]), words=[""])


def record(observed: Sequence[Observed], about: Mapping[str, Any]) -> None:
    """Write ``observations.json``, draw ``observations.png``, and put both on the run's TensorBoard page.

    Args:
        observed: the run and, if there is one, its reference, whose metrics are named ``reference/…``.
        about: what was observed.
    """
    run, folder = observed[0], observed[0].folder
    metrics = flat(run.layers) | flat(run.heads)
    origins = [{"run": one.folder.name, "checkpoint": one.checkpoint.name, "global_step": one.step} for one in observed]
    content = origins[0] | dict(about) | {"layers": list(run.layers), "reference": None}
    if len(observed) > 1:
        theirs = flat(observed[1].layers) | flat(observed[1].heads)
        metrics |= {f"reference/{name}": value for name, value in theirs.items()}
        content["reference"] = origins[1]
    earlier = ", in place of what was observed before" if (folder / OBSERVATIONS).exists() else ""
    write_json(folder / OBSERVATIONS, content | {"metrics": metrics})
    picture, title = folder / OBSERVATIONS_PICTURE, f"{about['network']}, {about['dataset']}"
    names = [run.folder.name, *(f"{one.folder.name} (reference)" for one in observed[1:])]
    networks = [(name, one.layers, one.heads) for name, one in zip(names, observed, strict=True)]
    draw_depth(networks, about["probe"], title, picture)
    logger = RunTensorBoardLogger(folder)
    logger.log_metrics(metrics, run.step)
    logger.experiment.add_text("observe", markdown(run.layers, about["probe"]), run.step)
    logger.experiment.add_image(
        "observe/depth", np.asarray(Image.open(picture).convert("RGB")), run.step, dataformats="HWC"
    )
    logger.finalize("success")
    print(f"Written to {folder / OBSERVATIONS} and {picture.name}{earlier}\nTo watch:   tensorboard --logdir {folder}")
