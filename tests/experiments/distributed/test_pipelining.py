"""torch's pipelining, which ``bench --processes`` measures, learns what backpropagation learns."""

import os
from itertools import repeat

import pytest
import torch
import torch.distributed as dist
from helpers import in_two_processes
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import nn
from training import batches, joined, made

from experiments.distributed.pipelining import SCHEDULES, Pipeline, unit_seconds, units_of
from experiments.measure.workbench import plain_steps
from models.methods.backprop import Backprop

STEPS, MICRO_BATCHES = 2, 4
SECONDS = [1.0] * 6 + [9.0]  # the classifier is a stage
batch = joined(batches(2))


def six_units(image_shape, num_classes):
    """A network in which no image sees another; the maps that reach Flatten are not 1×1."""
    units = [nn.Sequential(nn.Conv2d(8 if k else 3, 8, 3, padding=1), nn.ReLU(inplace=True)) for k in range(6)]
    return nn.Sequential(*units, nn.Flatten(), nn.Linear(8 * 8 * 8, num_classes))


def work(rank, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    for schedule in SCHEDULES:
        whole = made(Backprop, six_units)
        pipeline = Pipeline(whole, SECONDS, schedule, MICRO_BATCHES, torch.device("cpu"))
        for _ in range(STEPS):
            pipeline.step(batch)
        torch.save(whole.state_dict(), folder / f"{schedule}{rank}")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    in_two_processes(work, folder, find_free_network_port())
    return folder


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stages_learn_what_backpropagation_learns(schedule, both):
    before, whole = made(Backprop, six_units).state_dict(), made(Backprop, six_units)
    steps = plain_steps(whole, batch)
    for _ in range(STEPS):
        next(steps)
    theirs = [torch.load(both / f"{schedule}{rank}") for rank in range(2)]
    for name, value in whole.state_dict().items():
        (learned,) = (weights[name] for weights in theirs if not torch.equal(weights[name], before[name]))
        torch.testing.assert_close(learned, value, rtol=1e-4, atol=1e-6)


def test_stages_are_even_in_time(both):
    before, learned = made(Backprop, six_units).state_dict(), torch.load(both / "GPipe1")
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], learned[name])} == {"heads"}


def test_every_unit_is_timed_and_stays_as_it_is():
    whole = made(Backprop, six_units)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    found = unit_seconds(whole, batch.images)
    assert len(found) == len(units_of(whole)) == 7
    assert min(found) > 0
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    assert all(weight.grad is None for weight in whole.parameters())
    assert not batch.images.requires_grad


def test_more_stages_than_units_are_refused(monkeypatch):
    for name, number in {"get_world_size": 8, "get_rank": 0}.items():
        monkeypatch.setattr(dist, name, repeat(number).__next__)
    with pytest.raises(ValueError, match="7 units make no 8 stages"):
        Pipeline(made(Backprop, six_units), [1.0] * 7, "GPipe", 8, torch.device("cpu"))
