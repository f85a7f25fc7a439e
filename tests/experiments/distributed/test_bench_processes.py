"""``bench --processes``."""

import contextlib
import json
import os
from functools import partial

import pytest
from helpers import CONFIGS, DIGITS, SMALL, fault, in_two_processes
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from experiments.cli import main
from experiments.distributed import team
from experiments.distributed.bench_processes import ProcessBench, Way, show_bench_processes
from experiments.measure.workbench import Workbench
from losses.processes import process_count
from models.methods.backprop import Backprop
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.heads.classifiers import AuxHead
from models.networks.vgg import VGG

BATCH, MICRO_BATCHES = 32, [2, 4, 8, 16]
UNITS = 5  # of SMALL
PIPELINES = ("GPipe", "DualPipeV")
COMMAND = ("bench", f"--config={DIGITS}", *SMALL, "--model.num_blocks=3", f"--data.batch_size={BATCH}", "--steps=1")
vgg = partial(VGG, plan=(8, 8, "M", 16, 16))


def work(rank, folder, port):
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["OMP_NUM_THREADS"] = "1"
    team._AHEAD = 1
    team.SCHEDULES = {name: team.SCHEDULES[name] for name in PIPELINES}
    team.unit_seconds = lambda *_: [1.0] * (UNITS - 1) + [1.0 + 4 * rank]
    per_step = Workbench.per_step

    def shares_no_batch_alone(self, *args, **options):
        assert "strategy" in options or process_count() == 1
        return per_step(self, *args, **options)

    Workbench.per_step = shares_no_batch_alone
    with (folder / f"printed{rank}").open("w") as file, contextlib.redirect_stdout(file):
        main([*COMMAND, "--repetitions=1", "--processes=2", "--json"])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    in_two_processes(work, folder, find_free_network_port())
    assert not (folder / "printed1").read_text()
    return json.loads((folder / "printed0").read_text())


def parameter_bytes(model):
    return sum(weight.nbytes for weight in model.parameters())


def test_every_way_is_measured(found):
    ways = [*found["ways"]]
    assert ways[:5] == ["one process", "one process, 2 threads", "blocks apart", "replicas", "replicas, backprop"]
    assert [name.split(",")[0] for name in ways[5:]] == [*PIPELINES]
    assert found["best_pipeline"] in ways[5:]
    for way in found["ways"].values():
        assert way["images_per_second"] == pytest.approx(BATCH / way["step_seconds"])
    assert found["settings"] | {"processes": 2, "threads": 1, "steps": 1, "repetitions": 1} == found["settings"]


def test_each_schedule_is_tried_with_several_micro_batches_and_keeps_the_best(found):
    tried = [f"GPipe, {count} micro-batches" for count in MICRO_BATCHES]
    tried += [f"DualPipeV, {count} micro-batches" for count in MICRO_BATCHES[1:]]
    assert [*found["pipelines"]] == tried
    assert [*found["not_run"]] == ["DualPipeV, 2 micro-batches"]
    best = min(tried[:4], key=lambda name: found["pipelines"][name])
    assert best in found["ways"]


def test_blocks_apart_send_activations_up_and_nothing_comes_back(found):
    first, second = found["ways"]["blocks apart"]["sent_bytes"]
    after = found["profile"][0]["blocks"][1]
    floats = {1: 8 * 8 * 8, 2: 8 * 4 * 4}[after]  # of the features of an image
    state = 1 + 5056  # number of rows, and the bytes of a generator's state, int64
    assert first == {
        "send": BATCH * (4 * floats + 8 + 8) + 8 * state,
        "allreduce_": 0,
        "broadcast_": 0,
        "allgather_": 0,
    }
    assert not any(second.values())


def test_replicas_send_every_gradient_once(found):
    method = DecoupledGreedy(vgg, (1, 8, 8), 10, 3, head=partial(AuxHead, hidden=16))
    for name, model in {"replicas": method, "replicas, backprop": Backprop(vgg, (1, 8, 8), 10)}.items():
        for own in found["ways"][name]["sent_bytes"]:
            assert own["allreduce_"] == parameter_bytes(model)
            assert own["send"] == 0
    assert found["ratios"]["sent_over_parameters"] == 1


def test_pipelines_send_as_much_back_and_one_process_nothing(found):
    name = next(name for name in found["ways"] if name.startswith("GPipe"))
    up, down = found["ways"][name]["sent_bytes"]
    assert up == down
    assert up["send"] == BATCH * 4 * 16 * 4 * 4  # the last unit alone takes half of the time in one process
    (alone,) = found["ways"]["one process"]["sent_bytes"]
    assert not any(alone.values())


def test_processes_hold_the_activations_of_their_own_part(found):
    peaks = {name: way["peak_activation_bytes"] for name, way in found["ways"].items()}
    (whole,) = peaks["one process"]
    assert max(peaks["blocks apart"]) == whole  # the largest block's
    assert min(peaks["blocks apart"]) < whole
    assert max(peaks["replicas"]) < 0.6 * whole


def test_the_profile_adds_up(found):
    assert found["profile"][0]["blocks"][0] == 1
    assert found["profile"][1]["blocks"] == [found["profile"][0]["blocks"][1] + 1, 3]
    for own in found["profile"]:
        assert own["step"] == pytest.approx(own["compute"] + own["input"] + own["room"] + own["rest"])
        assert 0 < own["compute"] < own["step"]
    assert found["profile"][0]["input"] == found["profile"][1]["room"] == 0
    slowest = max(own["compute"] for own in found["profile"])
    step = found["ways"]["blocks apart"]["step_seconds"]
    assert found["ratios"]["step_over_slowest_block"] == pytest.approx(step / slowest)
    for whom, name in {"one_process": "one process", "pipelining": found["best_pipeline"]}.items():
        speedup = found["ways"][name]["step_seconds"] / step
        assert found["ratios"][f"speedup_over_{whom}"] == pytest.approx(speedup)


def test_it_prints_tables(found, capsys):
    result = ProcessBench(**found | {"ways": {name: Way(**way) for name, way in found["ways"].items()}})
    show_bench_processes(result, json=False)
    printed = capsys.readouterr().out
    for words in (
        "VGG, K = 3, G = 1, batch 32, cpu, 2 processes × 1 thread\n",
        *found["ways"],
        "Too few",
        "little to win",
    ):
        assert words in printed
    assert "not run          DualPipeV, 2 micro-batches: DualPipeV requires" in printed


@pytest.mark.parametrize(
    ("config", "options", "why"),
    [
        (DIGITS, ("--model.num_blocks=1",), "2 processes cannot share the blocks of DecoupledGreedy, which are 1"),
        (CONFIGS / "loco" / "digits.yaml", (), "which learn in pairs"),
        (CONFIGS / "layerwise" / "digits.yaml", (), "a step in which all blocks learn"),
        (CONFIGS / "closed_form" / "digits.yaml", (), "has none"),
        (DIGITS, ("--data.batch_size=33",), "33 images and --trainer.num_nodes 1 do not fit --processes 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(config, options, why, capsys):
    assert why in fault(capsys, "bench", f"--config={config}", "--processes=2", "--trainer.accelerator=cpu", *options)
