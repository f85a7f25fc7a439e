"""Which images a batch has, in training and in evaluation."""

import pytest
import torch

from datamodules.epochs import Epochs
from datamodules.files import DataError
from datamodules.images import MemoryImages
from datamodules.loaders import EpochBatches, SeededBatches, in_order, shares


def epochs_at(images=103, batch_size=10, epoch=0, done=0, **options):
    """The epochs of a run that has done some batches of the given one."""
    epochs = Epochs(images, batch_size, **options)
    epochs.step = epoch * epochs.now().left.stop + done
    return epochs


def epoch_batches(seed=0, **options):
    return EpochBatches(epochs_at(**options), seed)


def as_lists(batches):
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize(("images", "batch_size"), [(103, 10), (100, 10), (5, 10), (1, 1)])
def test_an_epoch_has_every_index_exactly_once(images, batch_size):
    batches = as_lists(epoch_batches(images=images, batch_size=batch_size))
    assert sorted(index for batch in batches for index in batch) == list(range(images))
    assert len(batches) == len(epoch_batches(images=images, batch_size=batch_size))
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_the_order_is_a_function_of_seed_and_epoch():
    runs = [(seed, epoch) for seed in range(4) for epoch in range(4)]
    orders = [as_lists(epoch_batches(seed=seed, epoch=epoch)) for seed, epoch in runs]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    torch.manual_seed(2)
    assert [as_lists(epoch_batches(seed=seed, epoch=epoch)) for seed, epoch in runs] == orders
    assert orders[0][0] != list(range(10))


@pytest.mark.parametrize(("images", "per_process"), [(103, 52), (104, 52), (101, 51), (81, 40), (80, 40)])
def test_processes_share_every_batch(images, per_process):
    def part(rank):
        batches = epoch_batches(images=images, process=(rank, 2))
        assert len(list(batches)) == len(batches)
        return as_lists(batches)

    first, second = part(0), part(1)
    assert [len(batch) for batch in first] == [len(batch) for batch in second]
    seen = [index for batch in [*first, *second] for index in batch]
    rest = images % 20 // 2 * 2
    assert len(seen) == len(set(seen)) == images // 20 * 20 + (rest if rest > 2 else 0)
    assert all(len(batch) == 10 for batch in first[:-1])


def test_every_batch_has_a_seed_of_its_own_in_every_process():
    def seeds(epoch, rank=0, done=0):
        epochs = epochs_at(100, batch_size=5, epoch=epoch, done=done, process=(rank, 2))
        return [seed for _, seed in SeededBatches(epochs, 5)]

    assert len({seed for epoch in range(4) for rank in range(2) for seed in seeds(epoch, rank)}) == 80
    assert seeds(2, done=3) == seeds(2)[3:]


# Evaluation


@pytest.mark.parametrize("processes", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("images", [7, 16, 17, 33])
def test_processes_evaluate_each_image_once_and_in_order(images, batch_size, processes):
    parts = [as_lists(shares(images, batch_size, (rank, processes))) for rank in range(processes)]
    for rank, part in enumerate(parts):
        assert [index for batch in part for index in batch] == list(range(images))[rank::processes]
        assert all(0 < len(batch) <= batch_size + (processes > 1) for batch in part)
    assert len({len(part) for part in parts}) == 1  # else DDP's exchange before every batch would wait for ever


def test_fewer_images_than_processes_are_refused():
    with pytest.raises(DataError, match="3 processes cannot share 2 images"):
        shares(2, 4, (0, 3))


def test_one_process_evaluates_in_full_batches_and_a_smaller_last_one():
    assert as_lists(shares(10, 4, (0, 1))) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_for_a_gpu_workers_stay_and_have_batches_ready_in_pinned_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made = in_order(MemoryImages(torch.zeros(8, 4, 4, 3), torch.zeros(8)), batch_size=2, num_workers=3)
    assert made.pin_memory
    assert made.persistent_workers
    assert made.prefetch_factor == 2
