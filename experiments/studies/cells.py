"""Cells that rebuild their input, beside untrained ones, hybrids and backpropagation: what linear classifiers read.

    python -m experiments.studies.cells MNIST --root data
    python -m experiments.studies.cells FashionMNIST --root data --seeds 0 1 2

Cells of every kind learn from some of the training images, all on every batch ("joint") or one after the other
("separate"), each for as many epochs; settings are those of the configs of ``unsupervised_forward_forward/``. Linear
classifiers learn from standardised features of the same images (Adam, 20 epochs), of each cell (of maps averaged over
4×4 regions), of all, and of all but the first. Backpropagation trains the same networks on the same images. Test top-1,
%, mean over the seeds; seconds are those of the processor, one thread, without the classifiers.
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.optim import Adam, AdamW

from datamodules.base import ImageDataModule
from datamodules.digits import Digits
from datamodules.mnist import MNIST, FashionMNIST
from experiments.measure.silent import silent_trainer
from experiments.probing.features import Splits, draw
from experiments.probing.probe import probe_network
from experiments.probing.probe_results import Findings
from experiments.probing.protocol import Protocol
from experiments.run import tables
from losses.goodness import Goodness
from models.method import Method
from models.methods.backprop import Backprop
from models.methods.forward_forward_hybrids import ForwardForwardHybrids
from models.methods.unsupervised_forward_forward import UnsupervisedForwardForward
from models.networks.chain import Chain
from models.networks.heads.cells import AdversarialCell, AutoEncoderCell, CellCallable, DenoisingCell
from models.networks.mlp import MLP
from models.networks.strided import StridedCNN

DATA: Mapping[str, type[ImageDataModule]] = {"MNIST": MNIST, "FashionMNIST": FashionMNIST, "digits": Digits}
VALIDATION = 0.01
"""Share of the images that is held out, of which nothing is asked here: a data module holds out some."""

perceptron: Callable[..., Chain] = partial(MLP, hidden=[500, 500, 500], batch_norm=False)
CELLS: Mapping[str, tuple[Callable[..., Chain], CellCallable]] = {
    "autoencoder": (perceptron, AutoEncoderCell),
    "denoising": (perceptron, DenoisingCell),
    "adversarial": (perceptron, AdversarialCell),
    "adversarial alone": (perceptron, partial(AdversarialCell, weight=1.0, reconstruction=0.0)),
    "convolutional autoencoder": (StridedCNN, AutoEncoderCell),
}
NETWORKS: Mapping[str, Callable[..., Chain]] = {"perceptron": perceptron, "convolutions": StridedCNN}
HYBRIDS: Mapping[str, Any] = {
    "num_blocks": 3,
    "goodness": Goodness(over="mean", temperature=0.1),
    "peer": 0.0,
    "optimizer": partial(Adam, lr=1e-3, fused=True),
}
"""Forward-Forward without labels, with the settings of ``forward_forward_hybrids/mnist_4x1000.yaml``."""
HEADINGS = ("", "each cell", "concatenated", "without cell 1", "s")


class Task(NamedTuple):
    """What all learn from, and for how long: of so many images, for so many epochs of each cell."""

    data: str
    root: str
    images: int
    test_images: int
    epochs: int

    def load(self, seed: int, **options: Any) -> ImageDataModule:
        """The data, with some of the images of each split, the same for every seed, in batches of 64."""
        data = DATA[self.data](root=self.root, batch_size=64, validation=VALIDATION, seed=seed, **options)
        load, counts = data.load, {True: self.images, False: self.test_images}
        data.load = lambda train: draw(load(train), counts[train], seed=0)  # type: ignore[method-assign]  # of this one
        return data


class Result(NamedTuple):
    """Test top-1, in %, of each block, of all concatenated and of all but the first; processor seconds of training."""

    blocks: Sequence[float]
    concatenated: float | None = None
    without_first: float | None = None
    seconds: float = 0.0


def trained(model: Method, data: ImageDataModule, epochs: int) -> float:
    """Train; processor seconds of it."""
    start = time.process_time()
    silent_trainer(accelerator="cpu", max_epochs=epochs).fit(model, datamodule=data)
    return time.process_time() - start


def read(model: Method, data: ImageDataModule, seconds: float = 0.0) -> Result:
    """What linear classifiers make of a network's blocks."""
    findings, blocks = Findings(), range(1, model.num_blocks + 1)
    protocol = Protocol(epochs=20, learning_rates=[5e-3], optimizer="Adam", standardise=True, seed=data.seed)
    probe_network(model, Splits.of(data), blocks, protocol, findings)

    def top1(block: int, *kinds: str) -> list[float]:
        names = [f"{protocol.linear}/block{block}/{kind}/top1" for kind in kinds]
        return [100 * findings.metrics[name] for name in names if name in findings.metrics][:1]

    each = [top1(k, "latent", "gap")[0] for k in blocks]
    concatenated, without_first = (next(iter(top1(blocks[-1], kind)), None) for kind in ("all", "all_but_first"))
    return Result(each, concatenated, without_first, seconds)


def results(task: Task, seed: int, kinds: Sequence[str], controls: bool = True) -> Iterator[tuple[str, Result]]:
    """Rows and what was found, with one seed: of networks without cells, and of these kinds of cells."""
    data = task.load(seed)
    images, optimizer = (data.image_shape, data.num_classes), partial(AdamW, lr=1e-3, fused=True)

    def cells(network: Callable[..., Chain], cell: CellCallable, **schedule: Any) -> UnsupervisedForwardForward:
        torch.manual_seed(seed)
        return UnsupervisedForwardForward(network, *images, cell=cell, optimizer=optimizer, **schedule)

    def backprop(network: Callable[..., Chain]) -> Backprop:
        torch.manual_seed(seed)
        return Backprop(network, *images, optimizer=optimizer)

    if controls:
        yield "pixels", read(backprop(partial(MLP, hidden=[])), data)
    for name, network in NETWORKS.items() if controls else ():
        yield f"{name}, untrained", read(cells(network, AutoEncoderCell), data)
        model = backprop(network)
        seconds = trained(model, data, task.epochs)
        [figures] = silent_trainer(accelerator="cpu").test(model, datamodule=data, verbose=False)
        yield f"{name}, backpropagation", Result([100 * figures["test/top1"]], seconds=seconds)
    for name in kinds:
        network, cell = CELLS[name]
        joint, separate = cells(network, cell), cells(network, cell, epochs_per_block=task.epochs)
        yield f"{name}, joint", read(joint, data, trained(joint, data, task.epochs))
        yield f"{name}, separate", read(separate, data, trained(separate, data, 3 * task.epochs))
    if controls:
        torch.manual_seed(seed)
        hybrids = ForwardForwardHybrids(perceptron, *images, **HYBRIDS)
        unit_scale = task.load(seed, mean=[0.0], std=[1.0])
        yield "Forward-Forward, hybrids", read(hybrids, unit_scale, trained(hybrids, unit_scale, task.epochs))


def cell_of_table(values: Sequence[float | None]) -> str:
    """Mean, and if there are several values their standard deviation; a dash without any."""
    known = [value for value in values if value is not None]
    if not known:
        return tables.NOTHING
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.1f}{spread}"


def rows(of_seeds: Sequence[Mapping[str, Result]]) -> list[list[str]]:
    """The table: means over the seeds."""
    made = []
    for name in of_seeds[0]:
        some = [found[name] for found in of_seeds]
        each = " ".join(f"{statistics.fmean(values):.1f}" for values in zip(*(one.blocks for one in some), strict=True))
        both = [cell_of_table(values) for values in ([r.concatenated for r in some], [r.without_first for r in some])]
        made.append([name, each, *both, f"{statistics.fmean(one.seconds for one in some):.0f}"])
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Print each figure as it is found, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=[*DATA])
    parser.add_argument("--root", default="data")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--test_images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--cells", choices=[*CELLS], nargs="+", default=[*CELLS])
    parser.add_argument("--without_controls", action="store_true", help="of cells alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    task = Task(options.data, options.root, options.images, options.test_images, options.epochs)
    of_seeds: list[dict[str, Result]] = []
    for seed in options.seeds:
        of_seeds.append({})
        for name, result in results(task, seed, options.cells, not options.without_controls):
            of_seeds[-1][name] = result
            print(f"seed {seed}:", *rows([{name: result}])[0], flush=True)
    print(tables.markdown(HEADINGS, rows(of_seeds)))


if __name__ == "__main__":
    main()
