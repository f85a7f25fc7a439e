"""The study of cells: its images, what classifiers read, its table."""

import pytest
import torch

from experiments.studies.cells import CELLS, Result, Task, cell_of_table, read, results, rows, trained
from models.methods.unsupervised_forward_forward import UnsupervisedForwardForward
from models.networks.mlp import MLP
from models.networks.strided import StridedCNN

TASK = Task("digits", "data", images=1200, test_images=50, epochs=1)


def small(image_shape, num_classes):
    return MLP(image_shape, num_classes, hidden=[12, 8, 6], batch_norm=False)


def test_all_seeds_learn_from_the_same_images_in_other_orders():
    first, second = TASK.load(0), TASK.load(1)
    for data in (first, second):
        data.setup("fit")
        data.setup("test")
    assert (len(first.known_images), len(first.test_dataloader().dataset)) == (1200, 50)
    every = [torch.arange(len(data.training_images)) for data in (first, second)]
    one, other = (data.training_images.__getitems__(rows) for data, rows in zip((first, second), every, strict=True))
    assert torch.equal(one.images, other.images)
    orders = [torch.cat([batch.labels for batch in data.train_dataloader()]) for data in (first, second)]
    assert not torch.equal(*orders)


@pytest.mark.parametrize("network", [small, StridedCNN])
def test_what_is_read_of_cells(network, monkeypatch):
    def found(model, splits, blocks, protocol, findings):
        kinds = model.block_features(torch.zeros(2, 1, 8, 8))
        values = {kind: float(len(kind) + int(kind[5])) for kind in kinds}
        findings.metrics |= {f"{protocol.linear}/{kind}/top1": value / 100 for kind, value in values.items()}
        assert (len(splits.train) + len(splits.val), len(splits.test)) == (1200, 50)
        assert (protocol.standardise, protocol.optimizer, [*blocks]) == (True, "Adam", [1, 2, 3])

    monkeypatch.setattr("experiments.studies.cells.probe_network", found)
    read_kind = "latent" if network is StridedCNN else "gap"
    result = read(UnsupervisedForwardForward(network, (1, 8, 8), 10), TASK.load(0), 7.0)
    assert result.blocks == pytest.approx([len(f"block1/{read_kind}") + k for k in (1, 2, 3)])
    assert result.concatenated == pytest.approx(len("block3/all") + 3)
    assert result.without_first == pytest.approx(len("block3/all_but_first") + 3)
    assert result.seconds == 7.0


def test_every_row_is_trained_as_it_says_from_the_same_weights(monkeypatch):
    seen = []

    def read_nothing(model, data, seconds=0.0):
        seen.append((type(model.heads[0]).__name__, model.network_name, model.schedule.lengths, model.trained_for))
        return Result([1.0])

    def train_nothing(model, data, epochs):
        model.trained_for = epochs
        return 0.0

    monkeypatch.setattr(torch.nn.Module, "trained_for", 0, raising=False)
    monkeypatch.setattr("experiments.studies.cells.read", read_nothing)
    monkeypatch.setattr("experiments.studies.cells.trained", train_nothing)
    names = [*dict(results(TASK._replace(epochs=2), 0, [*CELLS]))]
    assert names[-1] == "Forward-Forward, hybrids"
    assert seen.pop() == ("Sequential", "MLP-500-500-500", [], 2)
    assert names[:3] == ["pixels", "perceptron, untrained", "perceptron, backpropagation"]
    untrained = [row for row in seen if not row[-1]]
    assert len(untrained) == 3
    joint, separate = seen[3::2], seen[4::2]
    assert {(tuple(lengths), epochs) for *_, lengths, epochs in joint} == {((), 2)}
    assert {(tuple(lengths), epochs) for *_, lengths, epochs in separate} == {((2, 2, 2), 6)}
    cells = ["AutoEncoderCell", "DenoisingCell", "AdversarialCell", "AdversarialCell", "AutoEncoderCell"]
    assert [cell for cell, *_ in joint] == [cell for cell, *_ in separate] == cells
    assert joint[-1][1].startswith("StridedCNN")
    seen.clear()
    some = dict(results(TASK._replace(epochs=2), 0, ["denoising"], controls=False))
    assert [*some] == ["denoising, joint", "denoising, separate"]
    assert len(seen) == 2


def test_training_is_timed_and_moves_weights():
    torch.manual_seed(0)
    model = UnsupervisedForwardForward(small, (1, 8, 8), 10)
    before = [p.clone() for p in model.parameters()]
    assert trained(model, TASK.load(0), 1) > 0
    assert not any(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_the_table_has_means_over_the_seeds():
    found = [{"row": Result([10.0, 20.0], 30.0, None, 1.0)}, {"row": Result([20.0, 30.0], 32.0, None, 2.0)}]
    assert rows(found) == [["row", "15.0 25.0", "31.0 ± 1.4", "–", "2"]]
    assert rows(found[:1]) == [["row", "10.0 20.0", "30.0", "–", "1"]]
    assert cell_of_table([None]) == "–"
