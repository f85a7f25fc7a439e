"""Communication hooks on two processes (gloo, CPU), without Lightning."""

import pytest
import torch
import torch.distributed as dist
from helpers import in_two_processes
from small_training import STEPS, batches, flat, network
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from experiments.distributed.coders import FixedLength, Zlib
from experiments.distributed.entropy_coded import EntropyCoded
from experiments.distributed.hooks import HalfPrecision, PowerSGD, Uncompressed
from experiments.distributed.payloads import Weights
from experiments.distributed.quantizer import ExplicitBits, FixedRef, Relative
from losses.errors import UsageError

PARAMETERS, CODED = 64 * 96 + 96 + 96 * 40 + 40 + 40 * 10 + 10, 64 * 96 + 96 * 40

HOOKS = {
    "plain": lambda: None,
    "uncompressed": Uncompressed,
    "half": HalfPrecision,
    "power": lambda: PowerSGD(rank=1, start=2),
    "counting": EntropyCoded,
    "true": lambda: EntropyCoded(mode="true"),
    "counting, relative": lambda: EntropyCoded(Relative(2)),
    "true, relative": lambda: EntropyCoded(Relative(2), Zlib(), "true"),
    "tiny step": lambda: EntropyCoded(FixedRef(1e-5, clip=False)),
    "tiny step, true": lambda: EntropyCoded(FixedRef(1e-5, clip=False), mode="true"),
    "every third": lambda: EntropyCoded(code_every=3),
    "explicit": lambda: EntropyCoded(ExplicitBits(), FixedLength()),
    "explicit, true": lambda: EntropyCoded(ExplicitBits(), FixedLength(), "true"),
}


def train(model, share=slice(None)):
    """A few steps of SGD: the weights after each, ``(steps, parameters)``."""
    optimizer, weights = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), []
    for images, labels in batches():
        optimizer.zero_grad()
        cross_entropy(model(images[share]), labels[share]).backward()
        optimizer.step()
        weights.append(flat(model))
    return torch.stack(weights)


def work(rank, folder):
    """One of the two processes: train with every hook; write down weights and metrics."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    results = {}
    for name, make in HOOKS.items():
        model, hook = DistributedDataParallel(network(), bucket_cap_mb=0.02), make()  # several buckets
        if hook:
            hook.register(model)
            hook.measuring = True
        results[name] = {"weights": train(model, slice(rank, None, 2))}
        if hook:
            results[name] |= {"steps": hook.steps, "metrics": hook.metrics, "summary": hook.summary()}
    torch.save(results, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    in_two_processes(work, str(folder))
    return [torch.load(folder / str(rank)) for rank in (0, 1)]


@pytest.mark.parametrize("name", HOOKS)
def test_processes_stay_alike_and_every_step_is_counted_once(results, name):
    assert torch.equal(results[0][name]["weights"], results[1][name]["weights"])
    assert results[0][name].get("steps", STEPS) == STEPS


def test_two_processes_equal_one_with_both_batches(results):
    torch.testing.assert_close(results[0]["uncompressed"]["weights"], train(network()), atol=1e-6, rtol=0)
    assert torch.equal(results[0]["uncompressed"]["weights"], results[0]["plain"]["weights"])


@pytest.mark.parametrize("name", ["tiny step", "tiny step, true"])
def test_a_tiny_step_without_clipping_gives_the_plain_gradients(results, name):
    torch.testing.assert_close(results[0][name]["weights"], results[0]["plain"]["weights"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["", ", relative"])
def test_what_travels_coded_gives_the_same_average(results, rule):
    difference = results[0][f"counting{rule}"]["weights"] - results[0][f"true{rule}"]["weights"]
    # A rounding that falls the other way, because a sum was added up in another order, is one step of a gradient.
    assert float((difference.abs() < 1e-6).float().mean()) > 0.995
    assert float(difference.abs().max()) < 0.01


def test_bytes_of_the_baselines(results):
    assert results[0]["uncompressed"]["summary"] == {
        "bits_per_parameter": 32,
        "ratio": 1,
        "bytes_per_step": 4 * PARAMETERS,
        "megabytes": 4e-6 * PARAMETERS * STEPS,
    }
    assert results[0]["half"]["summary"]["bits_per_parameter"] == 16
    low_rank = 64 + 96 + 96 + 40 + 40 + 10 + (96 + 40 + 10)  # rows and columns of the matrices, and the biases
    assert results[0]["power"]["metrics"]["bytes_per_step"] == 4 * low_rank
    assert results[0]["power"]["summary"]["bytes_per_step"] == pytest.approx(
        (2 * 4 * PARAMETERS + (STEPS - 2) * 4 * low_rank) / STEPS
    )


def test_parameters_that_do_not_learn_are_not_counted_among_those_that_share_the_bits():
    hook, model = Uncompressed(), network()
    model[0].requires_grad_(False)
    hook.name_parameters(model)
    assert hook.traffic(4 * (PARAMETERS - 64 * 96 - 96), 1)["bits_per_parameter"] == 32


def test_bytes_of_coded_gradients_include_headers_and_what_is_not_coded(results):
    metrics = results[0]["counting"]["metrics"]
    sizes = {"0.weight": 64 * 96, "2.weight": 96 * 40}
    coded = sum(metrics[f"{name}/bits"] * size / 8 for name, size in sizes.items())
    assert metrics["bytes_per_step"] == pytest.approx(coded + 4 * (PARAMETERS - CODED))
    assert metrics["coded/bits"] == pytest.approx(8 * coded / CODED)
    assert {name.partition("/")[0] for name in metrics if "/" in name} == {*sizes, "coded"}
    for name in sizes:
        assert metrics[f"{name}/shannon_bits"] < metrics[f"{name}/bits"] < metrics[f"{name}/shannon_bits"] + 0.5
        assert 0 < metrics[f"{name}/zeros"] < 1
        assert metrics[f"{name}/clipped"] == 0
        assert 0 < metrics[f"{name}/residual_over_payload"] < 1


def test_true_mode_counts_the_longest_message_and_the_exchange_of_lengths(results):
    true, counting = (results[0][name]["metrics"]["bytes_per_step"] for name in ("true", "counting"))
    assert true == results[1]["true"]["metrics"]["bytes_per_step"]
    longest = max(result["counting"]["metrics"]["bytes_per_step"] for result in results)
    assert counting <= longest < true < longest + 200


def test_steps_between_codings_are_taken_for_as_long(results):
    every, third = (results[0][name] for name in ("counting", "every third"))
    assert torch.equal(every["weights"], third["weights"])
    assert third["summary"]["bytes_per_step"] == pytest.approx(every["summary"]["bytes_per_step"], rel=0.1)


def test_on_cuda_one_exchange_in_20_is_coded_unless_told_otherwise_or_the_code_travels():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    intervals = {
        (device.type, mode, every): EntropyCoded(mode=mode, code_every=every)._coding_interval(device)
        for device in (cuda, cpu)
        for mode, every in (("counting", None), ("counting", 3), ("true", None), ("true", 1))
    }
    assert intervals == {
        ("cuda", "counting", None): 20,
        ("cuda", "counting", 3): 3,
        ("cuda", "true", None): 1,
        ("cuda", "true", 1): 1,
        ("cpu", "counting", None): 1,
        ("cpu", "counting", 3): 3,
        ("cpu", "true", None): 1,
        ("cpu", "true", 1): 1,
    }


def test_a_hook_without_a_process_group_is_told():
    with pytest.raises(UsageError, match="no process group"):
        EntropyCoded().average(None)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FixedRef(c=-1), "above 0"),
        (lambda: Weights(every=0), "every must be at least 1, not 0"),
        (lambda: EntropyCoded(code_every=0), "at least 1"),
        (lambda: EntropyCoded(mode="true", code_every=2), "mode true"),
        (lambda: PowerSGD(start=1), "start ≥ 2"),
    ],
)
def test_impossible_settings_are_told(make, said):
    with pytest.raises(UsageError, match=said):
        make()
