"""What was observed of hidden layers: the tables, ``observations.json``, the run's TensorBoard page."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torchvision.io import decode_image

from experiments.probing.hidden_layers import LayerMetrics, flat
from experiments.probing.observe_pictures import draw_depth
from experiments.probing.saved_network import Checkpoint
from experiments.run import tables
from experiments.run.files import OBSERVATIONS, OBSERVATIONS_PICTURE, SUMMARY
from experiments.run.loggers import RunTensorBoardLogger
from experiments.run.summary import write_json


class Observed(NamedTuple):
    """What was observed of one network: metrics of its layers, in the order of the network, and of its heads."""

    checkpoint: Checkpoint
    layers: LayerMetrics
    heads: LayerMetrics


def _columns(probe: str) -> dict[str, tuple[str, str]]:
    """Heading, two lines → metric and its format."""
    groups = {
        "linear": (probe, ".2%"),
        "NCM": ("ncm", ".2%"),
        "D": ("fuzziness", "#.3g"),
        "rank": ("rank", ".1f"),
        "CKA": ("cka", ".3f"),
    }
    columns = {
        f"{group}\n{part}": (f"{metric}_{part}", form)
        for group, (metric, form) in groups.items()
        for part in ("train", "test", "gap")
    }
    columns["collapse\ntest"] = "collapse_test", "+.2%"
    columns["recoverable\ntest"] = "recoverable_test", ".2%"
    columns["redundant\np > 0.99"] = "confident_train", ".2%"
    columns["redundant\nloss < 0.01"] = "small_loss_train", ".2%"
    return columns


def table_of(metrics: LayerMetrics, probe: str) -> tuple[list[str], list[list[str]]]:
    """Headings, and one row per layer or head; only metrics that occur, among them the linear probe's; shares in %."""
    known = {metric for found in metrics.values() for metric in found}
    columns = {heading: column for heading, column in _columns(probe).items() if column[0] in known}
    rows = [
        [place, *(_cell(found.get(metric), form) for metric, form in columns.values())]
        for place, found in metrics.items()
    ]
    return ["", *columns], rows


def _cell(value: float | None, form: str) -> str:
    if value is None or value != value:  # NaN: it could not be computed
        return tables.NOTHING
    return f"{value:{form}}".removesuffix("%")


_LEGEND = """linear, NCM: top-1 % of a linear probe and of the nearest class mean. D: separation fuzziness.
rank: effective rank. CKA: alignment with the reference. collapse: its linear probe minus the run's, points.
recoverable: top-1 % with all behind a block trained anew. redundant: % of training images, by the head of a block."""


def show(observed: Sequence[Observed], about: Mapping[str, Any]) -> None:
    """Print a table of layers and one of heads per network, the run first."""
    images = about["images"]
    print(
        f"{about['network']}, {about['dataset']}: {images['train']} training, {images['test']} test images\n{_LEGEND}"
    )
    for (checkpoint, *parts), role in zip(observed, ("run", "reference"), strict=False):
        finished = (checkpoint.folder / SUMMARY).is_file()
        state = "" if finished else f": not finished, as it was after epoch {checkpoint.epoch}"
        print(f"\n{role}: {checkpoint.file}, step {checkpoint.step}{state}")
        for metrics in filter(None, parts):
            tables.show(*table_of(metrics, about["probe"]), words=[""])


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"run": checkpoint.folder.name, "checkpoint": checkpoint.file.name, "global_step": checkpoint.step}


def record(observed: Sequence[Observed], about: Mapping[str, Any]) -> None:
    """Write ``observations.json``, draw ``observations.png``, and put both on the run's TensorBoard page.

    The run comes first. If there is a reference, its metrics are named ``reference/…``.
    """
    run, layers, heads = observed[0]
    folder, metrics = run.folder, flat(layers) | flat(heads)
    content = _origin(run) | dict(about) | {"layers": list(layers), "reference": None}
    networks = [(folder.name, layers, heads)]
    for reference, their_layers, their_heads in observed[1:]:
        content["reference"] = _origin(reference)
        theirs = flat(their_layers) | flat(their_heads)
        metrics |= {f"reference/{name}": value for name, value in theirs.items()}
        networks.append((f"{reference.folder.name} (reference)", their_layers, their_heads))
    earlier = ", in place of what was observed before" if (folder / OBSERVATIONS).exists() else ""
    write_json(folder / OBSERVATIONS, content | {"metrics": metrics})
    picture = folder / OBSERVATIONS_PICTURE
    draw_depth(networks, about["probe"], f"{about['network']}, {about['dataset']}", picture)
    logger = RunTensorBoardLogger(folder)
    logger.log_metrics(metrics, run.step)
    logger.experiment.add_text("observe", tables.markdown(*table_of(layers, about["probe"])), run.step)
    logger.experiment.add_image("observe/depth", decode_image(str(picture), "RGB"), run.step)
    logger.finalize("success")
    print(f"Written to {folder / OBSERVATIONS} and {picture.name}{earlier}\nTo watch:   tensorboard --logdir {folder}")
