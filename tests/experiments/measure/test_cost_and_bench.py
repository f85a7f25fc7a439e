"""``cost`` and ``bench``."""

import json

import pytest
import torch
from helpers import CONFIGS, DIGITS, SMALL

from experiments.cli import main
from experiments.measure.allocator import keep_freed_memory

RESNET32 = CONFIGS / "decoupled_greedy" / "cifar10_resnet32.yaml"


def run_json(capsys, *args):
    main([*args, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("num_blocks", "macs"), [(1, 70.06), (2, 36.98), (4, 19.34), (8, 10.85), (16, 6.04)])
def test_slowest_node_is_the_published_one(num_blocks, macs, capsys):
    """GN-DGL, slowest node at G = 1, in M MACs; the data set need not be there."""
    cost = run_json(capsys, "cost", "--config", str(RESNET32), f"--model.num_blocks={num_blocks}")
    assert cost["slowest_node_macs"] / 1e6 == pytest.approx(macs, abs=0.01)
    assert len(cost["nodes"]) == num_blocks


def test_cost_counts_every_node(capsys):
    cost = run_json(capsys, "cost", "--config", str(RESNET32), "--model.num_blocks=4", "--data.batch_size=128")
    nodes = cost["nodes"]
    keys = {"block", "group", "parameters", "forward_macs", "activation_bytes", "bytes_out"}
    assert all(keys <= set(node) for node in nodes)
    assert [(node["block"], node["group"]) for node in nodes] == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert cost["total_macs"] == sum(node["forward_macs"] for node in nodes)
    assert cost["slowest_node_macs"] == max(node["forward_macs"] for node in nodes)
    floats = [16 * 32 * 32, 32 * 16 * 16, 64 * 8 * 8, 64 * 8 * 8]
    assert [node["bytes_out"] for node in nodes] == [128 * 4 * count for count in floats]
    assert cost["predicted_speedup"] == pytest.approx(70.06 / 19.34, rel=1e-3)


def test_plain_convention_counts_fewer_operations(capsys):
    published = run_json(capsys, "cost", "--config", str(RESNET32))
    plain = run_json(capsys, "cost", "--config", str(RESNET32), "--convention=plain")
    assert 0.98 * published["total_macs"] < plain["total_macs"] < published["total_macs"]


def test_cost_prints_a_table(capsys):
    main(["cost", "--config", str(DIGITS)])
    printed = capsys.readouterr().out
    assert "VGG, 4 blocks" in printed
    assert "batch of 64" in printed
    assert "slowest node" in printed
    assert "one per node" in printed


def test_cost_of_several_processes_names_their_number_and_the_batch_of_each(capsys):
    config = CONFIGS / "communication" / "digits.yaml"
    main(["cost", "--config", str(config), "--trainer.devices=2", "--data.batch_size=48"])
    assert "MiB of one process, a batch of 2 processes × 48" in capsys.readouterr().out


def test_bench_measures_method_backprop_and_checkpointing(capsys):
    result = run_json(capsys, "bench", "--config", str(DIGITS), *SMALL, "--steps=2", "--repetitions=2")
    for figures in (result, result["backprop"], result["checkpointing"], result["plain_loop"]):
        assert figures["images_per_second"] == pytest.approx(64 / figures["step_seconds"])
        assert figures["peak_activation_bytes"] > 0
    assert result["peak_activation_bytes"] < result["backprop"]["peak_activation_bytes"]
    assert result["checkpointing"]["peak_activation_bytes"] < result["backprop"]["peak_activation_bytes"]
    ratios = result["ratios"]
    prediction = ratios["predicted_step_over_backprop"]
    assert ratios["step_over_prediction"] == pytest.approx(ratios["step_over_backprop"] / prediction)
    assert prediction > 1
    assert ratios["memory_over_backprop"] == pytest.approx(
        result["peak_activation_bytes"] / result["backprop"]["peak_activation_bytes"]
    )
    assert result["loader"]["images_per_second_one_core"] > 0
    assert result["settings"]["repetitions"] == 2


def test_predsim_is_measured_like_any_method(capsys):
    config = ("--config", str(CONFIGS / "predsim" / "digits.yaml"), "--model.network.plan=[8,8,M,16]")
    cost = run_json(capsys, "cost", *config, "--model.num_blocks=3", "--data.batch_size=64")
    assert len(cost["nodes"]) == 3
    assert cost["final_head"] == [16 * 4 * 4 * 10 + 10, 16 * 4 * 4 * 10 + 10]  # parameters, MACs with biases
    small = ("--steps=1", "--repetitions=1", "--trainer.accelerator=cpu")
    result = run_json(capsys, "bench", *config, "--model.num_blocks=3", *small)
    # The loss keeps the similarity matrices besides.
    assert cost["peak_activation_bytes"] < result["peak_activation_bytes"] < 1.5 * cost["peak_activation_bytes"]


def test_bench_prints_a_table(capsys):
    main(["bench", "--config", str(DIGITS), *SMALL, "--steps=1", "--repetitions=1"])
    printed = capsys.readouterr().out
    for row in ("backprop", "checkpointing", "this method", "plain loop", "Lightning's own cost", "loader alone"):
        assert row in printed


def test_allocator_setting_takes_and_memory_still_works():
    keep_freed_memory()
    blocks = [torch.ones(2**20) for _ in range(8)]
    assert sum(float(block.sum()) for block in blocks) == 8 * 2**20
