"""Does a change of the code leave every training as it was? Losses, weights and checkpoints of two checkouts.

    git worktree add ../before COMMIT
    python -m experiments.studies.same_training ../before .

Every method (and each run of the demo) trains on digits in both checkouts, 20 steps or more, one thread, seed 0. What
must be equal, bit for bit: the losses of all steps, and the final weights; also those that the second checkout reaches
when it goes on from a checkpoint that the first one wrote half-way. Exits with 1 if something differs.
"""

import csv
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from experiments.studies.options import study_parser

_BLOCKS = "--model.num_blocks"
_TWO_EPOCHS = ("--trainer.max_epochs=2", "--trainer.limit_train_batches=10")
_SIX_LAYERS = ("--model.epochs_per_block=2", "--trainer.max_epochs=12", "--trainer.limit_train_batches=2")
_SGD = "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.05", "--model.optimizer.weight_decay=1e-3"

RUNS: Mapping[str, tuple[str, ...]] = {
    "backprop": ("backprop/digits", *_TWO_EPOCHS),
    "backprop-checkpointing": ("backprop/digits", *_TWO_EPOCHS, "--model.checkpoint_segments=3"),
    "backprop-exp_gb": ("backprop/digits", *_TWO_EPOCHS, "--model.output_loss=losses.ExpGB"),
    "backprop-info_batch": (
        "backprop/digits",
        "--trainer.max_epochs=4",
        "--trainer.callbacks+=experiments.callbacks.InfoBatch",
    ),
    "blockwise_ssl": ("blockwise_ssl/digits", *_TWO_EPOCHS),
    "blockwise_ssl-noise": (
        "blockwise_ssl/digits",
        *_TWO_EPOCHS,
        "--model.noise=models.networks.FeatureNoise",
        "--model.concatenate_views=true",
        "--model.loss=lightly.loss.BarlowTwinsLoss",
    ),
    "blockwise_ssl-difficulty": (
        "blockwise_ssl/digits",
        *_TWO_EPOCHS,
        "--data.views.levels=[0.25,1]",
        "--model.difficulty.views=true",
        "--model.difficulty.easy_temperature=1.0",
    ),
    "blockwise_ssl-one_by_one": (
        "blockwise_ssl/digits",
        _BLOCKS + "=2",
        "--model.epochs_per_block=2",
        "--trainer.max_epochs=4",
        "--trainer.limit_train_batches=6",
    ),
    "closed_form": ("closed_form/digits",),
    "decoupled_greedy-K2": ("decoupled_greedy/digits", *_TWO_EPOCHS, _BLOCKS + "=2"),
    "decoupled_greedy-K4": ("decoupled_greedy/digits", *_TWO_EPOCHS, _BLOCKS + "=4"),
    "decoupled_greedy-clip": (
        "decoupled_greedy/digits",
        *_TWO_EPOCHS,
        "--model.clip=0.5",
        "--model.recompute=true",
        "--model.scheduler_interval=step",
    ),
    "decoupled_greedy-one_by_one": (
        "decoupled_greedy/digits",
        _BLOCKS + "=3",
        "--model.epochs_per_block=2",
        "--trainer.max_epochs=6",
        "--trainer.limit_train_batches=4",
    ),
    "decoupled_greedy-mlp": ("decoupled_greedy/digits_mlp", *_TWO_EPOCHS),
    "infopro": ("infopro/digits", *_TWO_EPOCHS),
    "infopro-softmax": ("infopro/digits", *_TWO_EPOCHS, "--model.loss=softmax"),
    "layerwise": ("layerwise/digits", *_SIX_LAYERS),
    "layerwise-keep_heads": ("layerwise/digits", *_SIX_LAYERS, "--model.keep_heads=true", "--model.store=null"),
    "layerwise-regularized": (
        "layerwise/digits",
        *_SIX_LAYERS,
        *_SGD,
        "--model.regularization.weight_decay=2",
        "--model.regularization.input_dropout=0.1",
        "--model.regularization.overparameterize=2",
        "--model.head=models.networks.ConvHead",
    ),
    "loco": ("loco/digits", *_TWO_EPOCHS),
    "neuron_groups": ("neuron_groups/digits", *_TWO_EPOCHS),
    "neuron_groups-G1": ("neuron_groups/digits", *_TWO_EPOCHS, "--model.num_groups=1", "--model.final_head=null"),
    "neuron_groups-no_sharing": ("neuron_groups/digits", *_TWO_EPOCHS, "--model.sharing=false", _BLOCKS + "=3"),
    "neuron_groups-one_by_one": (
        "neuron_groups/digits",
        "--model.epochs_per_block=2",
        "--trainer.max_epochs=6",
        "--trainer.limit_train_batches=4",
    ),
    "predsim": ("predsim/digits", *_TWO_EPOCHS),
    "predsim-beta": ("predsim/digits", *_TWO_EPOCHS, "--model.beta=0.5", "--model.dropout=0.1"),
    "two_processes": ("communication/digits", *_TWO_EPOCHS),
}
"""Name → config, and what is changed in it."""

_ALWAYS = ("--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
_NOT_RESUMED = ("two_processes",)  # its hooks' first epoch is a calibration: nothing new is learned from a resume


def fit(checkout: Path, runs: Path, name: str, *more: str) -> Path:
    """Train one of :data:`RUNS` in a checkout; the run folder."""
    config, *options = RUNS[name]
    line = ["-m", "experiments", "fit", "--config", f"experiments/configs/{config}.yaml", *options, *_ALWAYS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *line, f"--runs={runs}", f"--name={name}", *more]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed in {checkout}: {done.stderr[-2000:]}")
    return runs / name


def losses(folder: Path) -> list[tuple[str, str, str]]:
    """(step, name, value) of every loss of every block in training."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return sorted(
        (row["step"], name, value)
        for row in rows
        for name, value in row.items()
        if value and name.startswith("train/") and name.endswith("/loss")
    )


def weights(checkpoint: Path) -> list[str]:
    """One checksum per parameter and buffer, whatever they are called."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    return sorted(hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for tensor in state.values())


def resumed(checkout: Path, before: Path, runs: Path, name: str) -> Path:
    """Go on in a checkout from the last checkpoint but one of a run of another."""
    folder = runs / name
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(before / "checkpoints" / "previous.ckpt", folder / "checkpoints" / "last.ckpt")
    return fit(checkout, runs, name, "--ckpt_path=last")


def compare(before: Path, after: Path, names: Sequence[str], folder: Path) -> bool:
    """Train, compare and print; whether all was equal."""
    equal = True
    for name in names:
        one = folder / "before" / name
        one = one if (one / "summary.json").is_file() else fit(before, one.parent, name)
        other = fit(after, folder / "after", name)
        final = weights(one / "checkpoints" / "last.ckpt")
        found = {
            f"{len(losses(one))} losses": losses(one) == losses(other),
            f"{len(final)} tensors": final == weights(other / "checkpoints" / "last.ckpt"),
        }
        if name not in _NOT_RESUMED:
            ended = resumed(after, one, folder / "resumed", name)
            found["resumed"] = final == weights(ended / "checkpoints" / "last.ckpt")
        equal &= all(found.values())
        print(
            f"{name:30}", *(f"{what}: {'equal' if same else 'DIFFERENT'}" for what, same in found.items()), flush=True
        )
    return equal


if __name__ == "__main__":
    parser = study_parser(__doc__)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="some of the runs")
    parser.add_argument("--keep", type=Path, help="keep the first checkout's runs there, for the next comparison")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if given.keep:
            given.keep.mkdir(parents=True, exist_ok=True)
            (folder / "before").symlink_to(given.keep.resolve())
        raise SystemExit(not compare(given.before.resolve(), given.after.resolve(), given.only, folder))
