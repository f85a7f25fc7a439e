"""Weights and their changes as payload: two processes (gloo, CPU) without Lightning, then one with it."""

import struct
import zlib

import numpy as np
import pytest
import torch
import torch.distributed as dist
import training
from helpers import in_two_processes
from small_training import batches, flat, network
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from experiments.distributed.coders import FixedLength
from experiments.distributed.entropy_coded import SMALLEST, EntropyCoded
from experiments.distributed.hooks import HalfPrecision, PowerSGD, Uncompressed
from experiments.distributed.payloads import Gradients, WeightDelta, Weights
from experiments.distributed.quantizer import ExplicitBits, FixedRef, Range
from experiments.distributed.strategy import CompressedDDP
from models.methods.backprop import Backprop
from models.networks.mlp import MLP

EVERY = 2  # of six steps, of which the fifth is said to be an epoch's last
EXCHANGED = (1, 3, 4, 6)  # of what is noted: weights after each step, and in the end

RUNS = {
    "delta": lambda: (WeightDelta(EVERY), Uncompressed()),
    "weights": lambda: (Weights(EVERY), Uncompressed()),
    "delta, half": lambda: (WeightDelta(EVERY), HalfPrecision()),
    "delta, power": lambda: (WeightDelta(EVERY), PowerSGD(rank=1, start=2)),
    "delta, tiny step": lambda: (WeightDelta(EVERY), EntropyCoded(FixedRef(1e-5, clip=False))),
    "delta, explicit": lambda: (WeightDelta(EVERY), EntropyCoded(ExplicitBits(), FixedLength())),
    "delta, coded": lambda: (WeightDelta(EVERY), EntropyCoded(mode="true")),
    "weights, coded": lambda: (Weights(EVERY), EntropyCoded(Range(16), mode="true")),
    "weights, counted": lambda: (Weights(EVERY), EntropyCoded(Range(16))),
}


def step(model, optimizer, images, labels):
    optimizer.zero_grad()
    cross_entropy(model(images), labels).backward()
    optimizer.step()


def train(rank, payload, hook):
    """Weights after each step, ``(steps, parameters)``, and the messages of the last exchange."""
    model, messages, gather = DistributedDataParallel(network()), [], getattr(hook, "_gather", None)
    payload.register(model, hook)
    payload.start()
    if gather:
        hook._gather = lambda *args: (messages.append(gather(*args)), messages[-1])[1]
    optimizer, weights = SGD(model.parameters(), lr=0.1, momentum=0.9), []
    for t, (images, labels) in enumerate(batches(), start=1):
        step(model, optimizer, images[rank::2], labels[rank::2])
        with torch.inference_mode(t == 5):  # as before a validation; what hooks keep must serve the next exchange
            payload.after_step(last=t == 5)
        weights.append(flat(model))
    payload.settle()
    weights.append(flat(model))
    return {"weights": torch.stack(weights), "messages": messages, "steps": hook.steps, "bytes": hook.total_bytes}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save({name: train(rank, *make()) for name, make in RUNS.items()}, f"{folder}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    in_two_processes(work, str(folder))
    return [torch.load(folder / str(rank), weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", RUNS)
def test_processes_learn_alone_and_are_alike_after_each_exchange(results, name):
    one, other = (result[name]["weights"] for result in results)
    alike = [index for index, (a, b) in enumerate(zip(one, other, strict=True)) if torch.equal(a, b)]
    assert tuple(alike) == EXCHANGED
    assert results[0][name]["steps"] == 4


def local_steps():
    """Slow: two networks side by side in one process, averaged after steps 2, 4, 5 and 6; their weights then."""
    models = network(), network()
    optimizers = [SGD(model.parameters(), lr=0.1, momentum=0.9) for model in models]
    for t, (images, labels) in enumerate(batches(), start=1):
        for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            step(model, optimizer, images[rank::2], labels[rank::2])
        if t in (2, 4, 5, 6):
            mean = (flat(models[0]) + flat(models[1])) / 2
            for model in models:
                torch.nn.utils.vector_to_parameters(mean.clone(), model.parameters())
    return mean


@pytest.mark.parametrize(
    ("name", "error"), [("delta", 1e-6), ("weights", 1e-6), ("delta, tiny step", 1e-5), ("delta, half", 1e-3)]
)
def test_uncompressed_or_finely_coded_it_is_local_sgd(results, name, error):
    torch.testing.assert_close(results[0][name]["weights"][-1], local_steps(), atol=error, rtol=0)


def decoded(message):
    """All numbers of a message."""
    place, numbers = 0, []
    for parameter in network().parameters():
        if parameter.numel() < SMALLEST:
            numbers.append(np.frombuffer(message, np.float32, parameter.numel(), place))
            place += 4 * parameter.numel()
            continue
        size, length = struct.unpack_from("<fI", message, place)
        place += 8 + length
        numbers.append(np.float32(size) * np.frombuffer(zlib.decompress(message[place - length : place]), np.int8))
    assert place == len(message)
    return torch.from_numpy(np.concatenate(numbers))


def test_the_weights_that_are_used_are_what_the_messages_decode_to(results):
    run = results[0]["weights, coded"]
    for index, (messages, _) in zip(EXCHANGED, run["messages"], strict=True):
        assert all(len(message) < 4 * run["weights"].shape[1] / 5 for message in messages)
        torch.testing.assert_close(sum(map(decoded, messages)) / 2, run["weights"][index])


def test_what_messages_of_changes_decode_to_is_added_to_the_weights_that_all_had(results):
    run, before = results[0]["delta, coded"], flat(network())
    for index, (messages, _) in zip(EXCHANGED, run["messages"], strict=True):
        torch.testing.assert_close(before + sum(map(decoded, messages)) / 2, run["weights"][index])
        before = run["weights"][index]


def test_counting_uses_the_same_weights_as_what_travels(results):
    counted, true = (results[0][name] for name in ("weights, counted", "weights, coded"))
    assert float(((counted["weights"] - true["weights"]).abs() < 1e-6).float().mean()) > 0.99


# -- with Lightning, in one process ---------------------------------------------------------------------


def fit(tmp_path, payload, hook=None, **options):
    """Train a perceptron on digits; the strategy."""
    torch.manual_seed(0)
    model = Backprop(MLP, (1, 8, 8), 10, optimizer=lambda parameters: SGD(parameters, lr=0.1, momentum=0.9))
    strategy = CompressedDDP(hook or Uncompressed(), payload)
    training.train(model, tmp_path, strategy=strategy, use_distributed_sampler=False, **options)
    return strategy


@pytest.mark.parametrize(
    ("payload", "options", "exchanges"),
    [
        (Gradients(), {}, 8),
        (WeightDelta(3), {}, 4),  # of every epoch's four steps after the third, and the last
        (Weights(100), {}, 2),
        (Weights(100), {"val_check_interval": 2}, 4),
        (Weights(100), {"max_steps": 3}, 1),
    ],
    ids=["gradients", "every three", "at the end of epochs", "before a validation", "at the end"],
)
def test_weights_are_exchanged_in_time_and_before_somebody_looks_at_them(payload, options, exchanges, tmp_path):
    assert fit(tmp_path, payload, **options).hook.steps == exchanges


def test_a_checkpoint_within_an_epoch_is_of_all_processes(tmp_path):
    class Saves(training.L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    strategy = fit(tmp_path, Weights(100), EntropyCoded(Range(16)), callbacks=[Saves()], max_epochs=1)
    assert strategy.hook.steps == 2
    saved = torch.load(tmp_path / "within.ckpt", weights_only=True)
    assert saved["communication"][0]["steps"] == 1
    weight = saved["state_dict"]["blocks.0.fc2.0.weight"]
    assert len(weight.unique()) <= 2 * 8 + 1  # 127 / 16 steps to either side
