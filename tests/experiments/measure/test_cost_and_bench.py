"""``cost`` and ``bench``."""

import json
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import pytest
from helpers import CONFIGS

from datamodules.augment import Augment
from datamodules.digits import Digits
from experiments.cli import main
from experiments.measure.bench import _leanest_segments, bench, show_bench
from experiments.measure.cost import network_cost
from experiments.measure.silent import silent_trainer
from experiments.measure.turns import median_ratio
from experiments.measure.workbench import Clock
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.airbench import Airbench
from models.networks.heads.classifiers import AuxHead, LinearHead
from models.networks.memory.profile import profile
from models.networks.vgg import VGG

RESNET32 = CONFIGS / "decoupled_greedy" / "cifar10_resnet32.yaml"


def run_json(capsys, *args):
    main([*args, "--json"])
    return json.loads(capsys.readouterr().out)


def test_cost_counts_every_node(capsys):
    """GN-DGL, G = 1; the data set need not be there."""
    config = ("--config", str(RESNET32), "--model.final_head=null", "--model.num_blocks=4", "--data.batch_size=128")
    cost, plain = (run_json(capsys, "cost", *config, *more) for more in ((), ("--convention=plain",)))
    nodes = cost["nodes"]
    assert [(node["block"], node["group"]) for node in nodes] == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert cost["parameters"] == sum(node["parameters"] for node in nodes)
    assert cost["total_macs"] == sum(node["forward_macs"] for node in nodes)
    assert cost["slowest_node_macs"] == max(node["forward_macs"] for node in nodes)
    assert cost["slowest_node_macs"] / 1e6 == pytest.approx(19.34, abs=0.01)
    floats = [16 * 32 * 32, 32 * 16 * 16, 64 * 8 * 8, 64 * 8 * 8]
    assert [node["bytes_out"] for node in nodes] == [128 * 4 * count for count in floats]
    assert cost["predicted_speedup"] == pytest.approx(70.06 / 19.34, rel=1e-3)
    assert 0.98 * cost["total_macs"] < plain["total_macs"] < cost["total_macs"]


def test_cost_prints_a_table_and_names_the_number_of_processes_and_the_batch_of_each(capsys):
    config = CONFIGS / "communication" / "digits.yaml"
    main(["cost", "--config", str(config), "--trainer.devices=2", "--data.batch_size=48"])
    printed = capsys.readouterr().out
    for words in ("1 block\n", "MiB of one process, a batch of 2 processes × 48", "slowest node", "one per node"):
        assert words in printed


def test_ratios_of_times_are_medians_of_the_turns_own():
    assert median_ratio([4.0, 9.0, 1.0], [2.0, 3.0, 1.0]) == 2


def test_steps_before_and_after_those_that_count_are_not_measured():
    times = iter([10.0, 16.0])
    clock = Clock({"seconds": lambda: next(times)}, range(2, 5))
    for step in range(1, 8):
        clock.on_train_batch_end(SimpleNamespace(global_step=step))
    assert clock.per_step == {"seconds": 2}


def test_checkpointing_has_the_segments_with_the_lowest_peak():
    model = DecoupledGreedy(partial(VGG, plan=(8, 8, "M", 16, 16)), (1, 8, 8), 10, 2)
    peaks = SimpleNamespace(peak_bytes=lambda whole: abs(whole.blocks[0].segments - 3))
    assert _leanest_segments(model, peaks) == 3


def test_bench_measures_method_backprop_and_checkpointing(capsys):
    network = partial(VGG, plan=(8, 8, "M", 16, 16))
    model = DecoupledGreedy(network, (1, 8, 8), 10, 4, head=partial(AuxHead, hidden=16))
    result = bench(model, Digits(batch_size=64), silent_trainer(accelerator="cpu"), steps=2, repetitions=2)
    for speed in (result, result.backprop, result.checkpointing, result.accumulation, result.plain_loop):
        assert speed.images_per_second == pytest.approx(64 / speed.step_seconds)
    own, whole = result.peak_activation_bytes, result.backprop.peak_activation_bytes
    assert own == result.plain_loop.peak_activation_bytes < whole
    assert result.checkpointing.peak_activation_bytes < whole
    assert result.accumulation.peak_activation_bytes <= 1.05 * own  # BatchNorm's own buffers do not shrink with a batch
    assert 64 % result.micro_batch == 0
    assert result.micro_batch / 64 <= own / whole
    assert result.ratios["memory_over_backprop"] == own / whole
    prediction = result.ratios["predicted_step_over_backprop"]
    assert result.ratios["step_over_prediction"] == result.ratios["step_over_backprop"] / prediction
    assert prediction > 1
    assert result.loader["images_per_second_one_core"] > 0

    show_bench(result, json=True)
    assert json.loads(capsys.readouterr().out) == asdict(result)
    show_bench(result, json=False)
    printed = capsys.readouterr().out
    rows = (
        "backprop",
        "checkpointing",
        "accumulation, 2 × 32 images",
        "this method",
        "plain loop",
        "Lightning's own cost",
        "loader alone",
        "Too few",
    )
    assert all(row in printed for row in ("VGG, K = 4, G = 1, batch 64", *rows))


def test_flips_that_alternate_are_measured_without_the_data_set():
    data = Digits(batch_size=16, augment=Augment(flip="alternate"))
    model = DecoupledGreedy(partial(VGG, plan=(8, "M", 16)), (1, 8, 8), 10, 2, head=partial(AuxHead, hidden=16))
    assert bench(model, data, silent_trainer(accelerator="cpu"), steps=1, repetitions=1).step_seconds > 0


def test_a_frozen_block_goes_forward_only_and_its_head_not_at_all():
    model = DecoupledGreedy(partial(Airbench, widths=(8, 8)), (3, 16, 16), 10, 2, head=LinearHead, frozen_blocks=1)
    cost = network_cost(model, 2, "plain")
    [(frozen, _)] = profile([model.blocks[0]], (3, 16, 16), 2, convention="plain")
    expected = frozen.forward_macs / 3 + cost.nodes[1].forward_macs
    assert cost.predicted_step_ratio * cost.backprop_macs == pytest.approx(expected)


def test_predsim_is_measured_like_any_method(capsys):
    config = ("--config", str(CONFIGS / "predsim" / "digits.yaml"), "--model.network.plan=[8,8,M,16]")
    cost = run_json(capsys, "cost", *config, "--model.num_blocks=3", "--data.batch_size=64")
    assert len(cost["nodes"]) == 3
    assert cost["final_head"] == [16 * 4 * 4 * 10 + 10, 16 * 4 * 4 * 10 + 10]  # parameters, MACs with biases
    small = ("--steps=1", "--repetitions=1", "--trainer.accelerator=cpu")
    result = run_json(capsys, "bench", *config, "--model.num_blocks=3", *small)
    assert result["settings"] | {"steps": 1, "repetitions": 1} == result["settings"]
    # The loss keeps the similarity matrices besides.
    assert cost["peak_activation_bytes"] < result["peak_activation_bytes"] < 1.5 * cost["peak_activation_bytes"]
