"""The backbone that Siddiqui et al. (2024) released, as the folder of a run, so that ``probe`` can judge it.

    python -m experiments.studies.released_blocks resnet50.pth --folder runs/released
    local-learning probe --config probe/imagenet --checkpoint runs/released

Four blocks of a ResNet-50 with their pooling heads, trained without noise: 70.15 % top-1 for block 4, ``cbe``.
The file holds no projectors, which no probe reads: one of a single feature stands for each.
"""

import argparse
import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from experiments.run.checkpoint import network_differences
from experiments.run.errors import RunError
from experiments.run.files import CONFIG, LAST
from losses.errors import UsageError
from models.methods.blockwise_ssl import BlockwiseSSL
from models.networks.cut import Cut
from models.networks.heads.embeddings import BiasFreeProjector
from models.networks.resnet import ResNet, from_torchvision

RECIPE = Path(__file__).parents[1] / "configs" / "blockwise_ssl" / "imagenet_resnet50.yaml"
WIDTHS = [1]


def released_model(recipe: Mapping[str, Any]) -> BlockwiseSSL:
    """The model of a configuration of the published run, without its projectors."""
    arguments = recipe["model"]["init_args"]
    return BlockwiseSSL(
        partial(ResNet, **arguments["network"]["init_args"]),
        image_shape=(3, 224, 224),
        num_classes=1000,
        num_blocks=arguments["num_blocks"],
        cut=Cut(**arguments["cut"]),
        expand_dim=arguments["expand_dim"],
        projector=partial(BiasFreeProjector, widths=WIDTHS),
    )


def in_blocks(model: BlockwiseSSL, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the released network under the names that they have in the model's blocks and heads."""
    cut = {f"units.{name}": f"blocks.{k}.{name}" for k, block in enumerate(model.blocks) for name in block.state_dict()}
    return {cut.get(name, name): tensor for name, tensor in from_torchvision(state).items()}


def load_released(model: BlockwiseSSL, state: Mapping[str, Tensor]) -> None:
    """Give blocks and pooling heads the weights of a released file; projectors keep theirs.

    Raises:
        RunError: it lacks some, has others, or other shapes.
    """
    projectors = {name: tensor for name, tensor in model.state_dict().items() if ".projector." in name}
    weights = in_blocks(model, state) | projectors
    if differences := network_differences(weights, model):
        raise RunError(f"This is not the released backbone: {differences[0]} ({len(differences)} differences).")
    model.load_state_dict(weights)


def write_run(model: BlockwiseSSL, recipe: Mapping[str, Any], folder: Path) -> None:
    """Write what ``probe`` reads of a run: its configuration and its last checkpoint."""
    config = copy.deepcopy(dict(recipe))
    config["model"]["init_args"]["projector"]["init_args"]["widths"] = WIDTHS
    (folder / LAST).parent.mkdir(parents=True)
    (folder / CONFIG).write_text(yaml.safe_dump(config))
    epochs = config["trainer"]["max_epochs"]
    counts: dict[str, Any] = {"epoch": epochs - 1, "global_step": 0, "loops": {}}
    torch.save({"state_dict": model.state_dict(), "image_shape": model.image_shape} | counts, folder / LAST)


def main() -> None:
    """Read the file, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="resnet50.pth, as it was released")
    parser.add_argument("--folder", type=Path, default=Path("runs/released"), help="run folder to write; a new one")
    options = parser.parse_args()
    recipe = yaml.safe_load(RECIPE.read_text())
    model = released_model(recipe)
    try:
        load_released(model, torch.load(options.file, map_location="cpu", weights_only=True))
        write_run(model, recipe, options.folder)
    except (UsageError, OSError) as fault:
        parser.exit(2, f"error: {fault}\n")


if __name__ == "__main__":
    main()
