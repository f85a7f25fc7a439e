"""Where a run stands, in epochs that differ: selections of the images, sizes of batches, several processes."""

import pytest
import torch

from datamodules.batch import Selection
from datamodules.digits import Digits
from datamodules.epochs import Epochs


def at_step(data, step):
    """Number of the epoch that the step belongs to, and the batches that are still to come."""
    data.epochs.step = step
    epoch = data.epochs.now()
    return epoch.number, epoch.left


def training(data):
    return list(data.train_dataloader())


def met(batches):
    return torch.cat([batch.indices for batch in batches]).sort().values


ODD = Selection(torch.arange(1, 1293, 2), torch.arange(1293.0))


def test_batches_say_which_images_they_hold(ready):
    data = ready(Digits(batch_size=100))
    images = data.training_images.__getitems__(torch.arange(1293))
    batches = training(data)
    assert torch.equal(met(batches), torch.arange(1293))
    for batch in batches:
        assert torch.equal(batch.images, images.images[batch.indices])
        assert torch.equal(batch.labels, images.labels[batch.indices])
        assert batch.weights is None
    assert next(iter(data.val_dataloader())).indices is None


def test_epochs_of_different_lengths_follow_each_other_until_a_new_fit(ready):
    data = ready(Digits(batch_size=100))
    data.trainer.global_step = 13  # the end of the first epoch
    data.select(ODD)
    assert at_step(data, 13) == (1, slice(0, 7))
    assert at_step(data, 16) == (1, slice(3, 7))
    data.trainer.global_step = 20
    data.select(None)
    assert at_step(data, 20) == (2, slice(0, 13))
    data.select(ODD)
    data.trainer.global_step = 0
    data.setup("fit")
    assert at_step(data, 0) == (0, slice(0, 13))
    assert len(met(training(data))) == 1293


def test_an_epoch_of_a_selection_with_its_weights_resumes_in_its_middle(ready, tmp_path):
    data = ready(Digits(batch_size=100))
    data.trainer.global_step = 13
    data.select(ODD)
    whole = training(data)
    assert torch.equal(met(whole), ODD.indices)
    assert all(torch.equal(batch.weights, batch.indices.float()) for batch in whole)
    torch.save(data.state_dict(), tmp_path / "state")
    resumed = ready(Digits(batch_size=100), step=17)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    rest = training(resumed)
    assert [batch.indices.tolist() for batch in rest] == [batch.indices.tolist() for batch in whole[4:]]


def test_batches_grow_with_the_epoch(ready):
    data = ready(Digits(batch_size=100, batch_sizes={2: 200, 3: 400}))
    assert data.trainer.reload_dataloaders_every_n_epochs == 1
    sizes = []
    for step in (0, 13, 26, 33, 37, 41):
        data.trainer.global_step = step
        batches = training(data)
        sizes.append((data.epochs.now().number, len(batches), len(batches[0].labels)))
    assert sizes == [(0, 13, 100), (1, 13, 100), (2, 7, 200), (3, 4, 400), (4, 4, 400), (5, 4, 400)]


@pytest.mark.parametrize(
    ("length", "batch_size", "processes", "count"),
    [(101, 10, 1, 10), (102, 10, 1, 11), (1, 10, 1, 1), (5, 1, 1, 5), (1, 1, 1, 1), (102, 10, 5, 2), (110, 10, 5, 3)],
)
def test_a_last_batch_of_a_single_image_per_process_is_left_out(length, batch_size, processes, count):
    assert Epochs(length, batch_size, process=(0, processes)).now().batches == count


def test_the_place_in_an_epoch_is_that_of_all_processes(ready):
    data = ready(Digits(batch_size=100), step=7, process=(1, 2))
    assert at_step(data, 7) == (1, slice(0, 7))
    assert len(training(data)) == 7


def test_processes_draw_different_random_numbers(ready):
    def draw(process):
        data = ready(Digits(batch_size=10), step=3, process=process)
        data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
        return torch.rand(()).item()

    assert len({draw((0, 2)), draw((1, 2)), draw((0, 1))}) == 3
