"""The documents hold: links lead somewhere, what they name exists, and what they show runs."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fake_data import CLASSES, FOLDER_CLASSES, write_data_set
from helpers import DIGITS

from experiments.cli import main
from experiments.named_configs import config_path
from models.networks.sequential import build_chain

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PATHS = re.compile(r"`((?:experiments|models|losses|datamodules|tests)/[\w/]+(?:\.\w+)?/?)")


def anchors(page: Path) -> set[str]:
    """What may follow ``#`` in a link to a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_names_lead_somewhere(page):
    text = page.read_text()
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    missing = [path for path in PATHS.findall(text) if not (ROOT / path).exists()]
    configs = re.findall(r"experiments/configs/[\w/]+\.yaml", text)
    studies = [f"experiments/studies/{name}.py" for name in re.findall(r"experiments\.studies\.(\w+)", text)]
    assert not missing + [path for path in [*configs, *studies] if not (ROOT / path).is_file()]
    named = re.findall(r"(?:--config |local-learning suite |(?:config|probe): )([a-z]+\w*/\w+)(?![\w./])", text)
    assert not [name for name in named if not config_path(name).is_file()]


def test_a_method_of_ones_own_trains_as_the_readme_says(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text()
    (tmp_path / "smooth.py").write_text(re.search(r"```python\n(.+?)```", readme, re.DOTALL)[1])
    monkeypatch.syspath_prepend(tmp_path)
    assert "--model smooth.Smooth" in readme
    main(["fit", "--config", str(DIGITS), "--model=smooth.Smooth", "--trainer.fast_dev_run=true"])


def commands(page: str) -> list[str]:
    """The commands on a page, each one line of a block of code."""
    return re.findall(r"^local-learning (.+)$", (ROOT / page).read_text(), re.MULTILINE)


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """Writes a tiny copy of the data set of a command: of its config, or the page's own."""

    def write(command):
        if "letters.Letters" in command:
            contributing = (ROOT / "CONTRIBUTING.md").read_text()
            (tmp_path / "letters.py").write_text(
                re.search(r"```python\n([^`]+class Letters.+?)```", contributing, re.DOTALL)[1]
            )
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.delitem(sys.modules, "letters", raising=False)
            for split in ("train", "test"):
                images, labels = np.zeros((260, 28, 28, 1), np.uint8), np.arange(260) % 26
                np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
            return tmp_path
        config = yaml.safe_load(config_path(shlex.split(command)[2]).read_text())
        name = config["data"]["class_path"].rpartition(".")[2]
        return write_data_set(name, tmp_path / "data", monkeypatch)

    return write


SMALLER = {
    "imagenet_resnet50": ["--data.validation=0.3", "--data.num_workers=0", "--data.image_size=32"],
    "imagenet32_resnet18": ["--data.validation=0.3", "--model.projector.init_args.widths=[16,16,16]"],
}
"""What makes a command on a tiny copy of its data quick."""


@pytest.mark.parametrize("command", commands("docs/data.md"))
def test_every_command_on_data_runs(command, data_set, monkeypatch):
    monkeypatch.chdir(ROOT)
    classes = len(FOLDER_CLASSES["ImageNet"]) if "imagenet_" in command else CLASSES["Imagenet32"]
    command = re.sub(r"num_classes \d+", f"num_classes {classes}", command).replace("FOLDER", str(data_set(command)))
    options = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--data.batch_size=4"]
    main([*shlex.split(command), *options, *SMALLER.get(Path(shlex.split(command)[2]).stem, [])])


def test_a_network_of_ones_own_trains_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = (ROOT / "docs" / "networks.md").read_text()
    (tmp_path / "mynet.py").write_text("".join(re.findall(r"^```python\n(.+?)^```", page, re.DOTALL | re.MULTILINE)))
    [command] = commands("docs/networks.md")
    options = "--model.network mynet.Net --model.network.width 64"
    assert f"`{options}`" in page
    for line in (command, command.replace("--model.network mynet.make", options).replace("blocks 3", "blocks 2")):
        main([*shlex.split(line), "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"])
    with torch.device("meta"):
        chain = build_chain(importlib.import_module("mynet").vgg, (3, 64, 64), 10)
    assert len(chain.units) == 8 + 2  # convolutions, hidden layers
