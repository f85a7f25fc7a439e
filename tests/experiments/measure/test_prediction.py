"""``cost --processes`` and ``cost --simulate``."""

import contextlib
import json
import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, DIGITS, SMALL, fault, in_two_processes
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from datamodules.digits import Digits
from experiments.cli import main
from experiments.measure.prediction import Measured, _apart, doublings, foresee, predict
from experiments.measure.silent import silent_trainer
from experiments.measure.simulator import Link
from experiments.measure.workbench import Workbench
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.neuron_groups import NeuronGroups
from models.networks.heads.classifiers import AuxHead
from models.networks.vgg import VGG

GROUPS = (f"--config={CONFIGS / 'neuron_groups' / 'digits.yaml'}", *SMALL[:2], *SMALL[-1:], "--model.num_groups=2")


def measured(*block_seconds, final=0.0, groups=1, handed_on=0.0):
    seconds = {width: [one / width for one in block_seconds] for width in range(1, groups + 1)}
    return Measured(seconds, final, 10.0, 8.0, [handed_on] * len(block_seconds), 10.0, groups, processes=1, threads=1)


def test_blocks_go_where_the_slowest_process_is_fastest():
    prediction = predict(measured(3, 1.5, 2, final=3), 2)  # without the final head it would be the first block alone
    assert prediction.blocks == [(1, 2), (3, 3)]
    assert prediction.step_seconds == pytest.approx(5)
    assert prediction.fill_seconds == pytest.approx(4.5)
    assert prediction.over_one_process == pytest.approx(10 / 5)
    assert prediction.over_backprop == pytest.approx(8 / 5)
    assert [usage.computes for usage in prediction.usage] == [[pytest.approx(0.9)], [pytest.approx(1)]]


def test_one_process_takes_all_its_parts_take():
    prediction = predict(measured(1, 2, 3, final=0.5, groups=2), 1, Link(1, 1))
    assert (prediction.step_seconds, prediction.fill_seconds) == (pytest.approx(6.5), 0)


def test_groups_share_a_block_where_blocks_alone_do_not_divide_the_work():
    uneven = measured(1, 9, groups=2, handed_on=100)
    assert predict(uneven, 2).width == 2  # 10 / 2 seconds, not 9
    assert predict(uneven, 2, Link(bytes_per_second=20)).width == 1  # exchanges: (50 + 5) / 20 for each block
    nodes = predict(uneven, 4, Link(bytes_per_second=100))
    assert nodes.blocks == [(1, 1), (2, 2)]
    assert nodes.step_seconds == pytest.approx(9 / 2 + 0.5 + 0.05)
    assert nodes.fill_seconds == pytest.approx(1 / 2 + 0.5 + 0.05 + 1)


def test_the_final_head_learns_in_all_processes_of_the_last_block():
    [usage] = predict(measured(4, final=1, groups=2), 2).usage
    assert usage.computes == [pytest.approx(1)] * 2
    assert predict(measured(4, final=1, groups=2), 2).step_seconds == pytest.approx(3)


@pytest.mark.parametrize(
    ("blocks", "groups", "counts"), [(4, 1, [1, 2, 4]), (3, 1, [1, 2, 3]), (3, 4, [1, 2, 4, 8, 12]), (1, 3, [1, 3])]
)
def test_numbers_of_processes_double_up_to_one_for_each_node(blocks, groups, counts):
    assert doublings(blocks, groups) == counts
    for count in counts:
        prediction = predict(measured(*[1.0] * blocks, groups=groups), count)
        assert prediction.processes == count == len(prediction.blocks) * prediction.width


def test_numbers_that_blocks_and_groups_do_not_make_are_refused_before_anything_is_measured(capsys):
    assert "7 processes cannot share 2 blocks of 2 groups" in fault(capsys, "cost", *GROUPS, "--processes=7")


def test_every_part_is_timed_to_its_update_without_the_warm_up(monkeypatch):
    network = partial(VGG, plan=(8, 8, "M", 16))
    model = DecoupledGreedy(network, (1, 8, 8), 10, 3, head=partial(AuxHead, hidden=16), frozen_blocks=1)
    place = Workbench(Digits(batch_size=4), silent_trainer(accelerator="cpu"), steps=2)
    time, steps = 0.0, 0

    def passes(k, *_):
        nonlocal time, steps
        steps += k == 0
        time += 10**k * (100 if steps <= 2 else 1)

    monkeypatch.setattr("experiments.measure.workbench.now", lambda device: time)
    for k, block in enumerate(model.blocks):
        block.register_forward_hook(partial(passes, k))
    assert place.part_seconds(model) == [0, 1 + 10, 100]


def test_groups_are_measured_without_the_others_and_are_whole_afterwards():
    model = NeuronGroups(partial(VGG, plan=(8, 8, "M", 16)), (1, 8, 8), 10, 2, 4, head=partial(AuxHead, hidden=16))
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = {name: len(tensor) for name, tensor in whole.items() if tensor.dim() and "heads.2" not in name}
    with _apart(model, 2):
        assert {name: len(tensor) for name, tensor in model.state_dict().items() if name in rows} == {
            name: count // 2 for name, count in rows.items()
        }
        logits = model.heads[0](model.blocks[0](torch.rand(3, 1, 8, 8)))
        assert logits.shape == (3, 4, 10)
    assert all(torch.equal(weight, whole[name]) for name, weight in model.named_parameters())


def test_cost_predicts_from_what_it_measured(capsys):
    main(["cost", *GROUPS, "--model.num_blocks=4", "--data.batch_size=32", "--processes=4", "--json"])
    found = json.loads(capsys.readouterr().out)
    measured, [prediction] = found["measured"], found["predictions"]
    assert [*measured["block_seconds"]] == ["1", "2"]
    parts = measured["block_seconds"][str(prediction["width"])]
    assert len(parts) == 4
    assert min(*parts, measured["final_seconds"]) > 0
    stages = [sum(parts[a - 1 : b]) for a, b in prediction["blocks"]]
    stages[-1] += measured["final_seconds"]
    assert len(stages) * prediction["width"] == 4
    assert prediction["step_seconds"] == pytest.approx(max(stages))
    assert measured["handed_on"] == [4 * 32 * n for n in (8 * 64, 8 * 64 // 4, 16 * 16, 16 * 16)]
    assert measured["predictions"] == 4 * 32 * 10 * 2


def test_cost_simulates_up_to_one_process_a_node_over_a_link(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("experiments.trainer.foresee", lambda *args: asked.append(args[3:]) or foresee(*args))
    main(["cost", *GROUPS, "--simulate", "--link_gigabits=8", "--link_milliseconds=2", "--jitter=0.2"])
    assert asked == [(None, Link(bytes_per_second=1e9, latency=0.002), 0.2)]
    printed = capsys.readouterr().out
    rows = re.findall(r"^ *(\d+) +(\d) +(\d) +[\d.]+ ", printed, re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "2", "4"]
    assert rows[-1] == ("4", "2", "2")
    assert "4 processes: " in printed


@pytest.mark.parametrize(
    ("config", "why"), [("layerwise/digits", "one after the other"), ("loco/digits", "learn in pairs")]
)
def test_blocks_that_do_not_learn_side_by_side_are_not_predicted(config, why, capsys):
    assert why in fault(capsys, "cost", f"--config={config}", "--processes=2")


def measure_at_once(rank, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if rank:
        Workbench.plain_step_seconds = None  # the first process alone measures the whole step
    Workbench.part_seconds = lambda _, model: [1.0 + 2 * rank] * model.schedule.parts
    command = ["cost", f"--config={DIGITS}", *SMALL[:2], *SMALL[-1:], "--trainer.devices=2", "--processes=4"]
    with Path(folder, f"printed{rank}").open("w") as file, contextlib.redirect_stdout(file):
        main(command)


def test_blocks_are_measured_in_as_many_processes_at_once_as_there_are_devices(tmp_path):
    in_two_processes(measure_at_once, tmp_path, find_free_network_port())
    printed = (tmp_path / "printed0").read_text()
    assert "each of 2 processes at once" in printed
    assert "4 processes: 2000.0 ms" in printed  # the mean of 1 and 3 seconds for each block
    assert not (tmp_path / "printed1").read_text()
