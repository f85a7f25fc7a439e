"""What a run measures of itself."""

from types import SimpleNamespace

import torch

from datamodules.batch import Batch
from experiments.callbacks.meter import Meter


def test_memory_is_that_of_a_whole_batch_and_not_of_the_first_step():
    meter = Meter()
    model = SimpleNamespace(device=torch.device("cpu"), parameters=list, buffers=list)
    meter.on_train_epoch_start(None, model)
    measured = []
    for step, size in enumerate([8, 3, 8, 16]):  # the second batch is what is left of an epoch
        weight = torch.ones(4, requires_grad=True)
        trainer = SimpleNamespace(global_step=step, is_last_batch=False)
        batch = Batch(torch.ones(size, 4), torch.zeros(size))
        meter.on_train_batch_start(trainer, model, batch, step)
        (batch.images * weight).sum().backward()
        trainer.global_step += 1
        meter.on_train_batch_end(trainer, model, None, batch, step)
        measured.append(meter.peak_activation_bytes)
    assert measured[:2] == [None, None]
    assert measured[2] == measured[3] >= 8 * 4 * 4


def test_memory_is_that_of_the_epoch_that_needs_most():
    meter, measured = Meter(), []
    model = SimpleNamespace(device=torch.device("cpu"), parameters=list, buffers=list)
    meter.on_train_epoch_start(None, model)
    for step, size in enumerate([8, 8, 32, 4]):  # two batches of the first epoch, one of each other
        weight = torch.ones(4, requires_grad=True)
        trainer = SimpleNamespace(global_step=step, is_last_batch=False)
        batch = Batch(torch.ones(size, 4), torch.zeros(8))
        meter.on_train_batch_start(trainer, model, batch, 1 if step == 1 else 0)
        (batch.images * weight).sum().backward()
        meter.on_train_batch_end(trainer, model, None, batch, 1 if step == 1 else 0)
        measured.append(meter.peak_activation_bytes)
    assert measured[0] is None
    assert 4 * measured[1] == measured[2] == measured[3]
