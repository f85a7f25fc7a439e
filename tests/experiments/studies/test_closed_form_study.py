"""The toy benchmark: every method is fitted, what is written can be read."""

import csv
import re
import sys
from functools import partial

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR

from datamodules.toys import Checkerboard, Rings
from experiments.studies import closed_form
from experiments.studies.closed_form import Recipe, accuracy, best_rate, descend, draw, solve
from models.networks.mlp import MLP


@pytest.fixture
def short(monkeypatch):
    recipe = Recipe(2, (1e-6, 0.1), partial(SGD, momentum=0.9), partial(ConstantLR, factor=1))
    monkeypatch.setattr(closed_form, "RECIPES", {"momentum-SGD": recipe})


def test_tables_are_written(short, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(closed_form, "WIDTHS", ([5], [6, 7]))
    monkeypatch.setattr(closed_form, "TASKS", (Checkerboard, Rings))
    monkeypatch.setattr(sys, "argv", ["closed_form", "--seeds=2", f"--output={tmp_path}", "--no_pictures"])
    closed_form.main()
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (3 * 3 + 1) * 2
    assert all(0 <= float(row[split]) <= 1 for row in rows for split in ("train", "test"))
    text = (tmp_path / "tables.md").read_text()
    assert text in capsys.readouterr().out
    assert re.search(r"\| Rings \| 6-7 \| \d+\.\d / \d+\.\d ± \d+\.\d \|", text)


def test_pictures_have_a_panel_per_method_task_width_and_ridge(short, monkeypatch, tmp_path):
    monkeypatch.setattr(closed_form, "TASKS", (Checkerboard, Rings))
    methods, ridges = closed_form.method_panels([5]), closed_form.ridge_panels(Checkerboard, "elm")
    assert [len(row) for row in methods] == [4, 4]
    assert [row[0][0] for row in ridges] == [f"{widths} units, λ = 1e-06" for widths in ("50", "500", "500-500")]
    closed_form.draw_panels([methods[0][2:], ridges[0][:2]], tmp_path / "panels.png")
    assert Image.open(tmp_path / "panels.png").width > 300


def test_splits_are_those_of_a_run():
    splits = draw(Checkerboard, seed=1)
    assert [len(points.labels) for points in splits.values()] == [400, 100, 2000]
    assert splits["train"].images.shape == (400, 2, 1, 1)


def test_solving_needs_no_trainer():
    splits = draw(Checkerboard, seed=0)
    assert accuracy(solve(splits["train"], [300], "elm", 1e-2, seed=0), splits["test"]) > 0.8


def test_descent_is_a_plain_loop(short):
    train = draw(Checkerboard, seed=0)["train"]
    ours = descend(train, [5], "momentum-SGD", 0.1, seed=3)
    torch.manual_seed(3)
    network = MLP((2, 1, 1), 2, [5], batch_norm=False)
    optimizer = SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for chosen in torch.randperm(400).split(32):
            optimizer.zero_grad()
            F.cross_entropy(network(train.images[chosen]), train.labels[chosen]).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), network.parameters(), strict=True))


def test_the_better_learning_rate_is_taken(short, monkeypatch):
    longer = closed_form.RECIPES["momentum-SGD"]._replace(epochs=30)
    monkeypatch.setitem(closed_form.RECIPES, "momentum-SGD", longer)
    assert best_rate(draw(Checkerboard, seed=0), [100], "momentum-SGD") == 0.1
