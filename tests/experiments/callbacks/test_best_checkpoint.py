"""``best.ckpt`` of a run that goes on."""

import pytest
import torch

from experiments.callbacks.best_checkpoint import BestCheckpoint


@pytest.fixture
def of_elsewhere(tmp_path):
    """What a run in another folder remembered of its best epoch."""
    before = BestCheckpoint(tmp_path / "before", "val/top1")
    before.best_model_score = before.kth_value = torch.tensor(0.9)
    before.best_model_path = before.kth_best_model_path = str(tmp_path / "before" / "checkpoints" / "best.ckpt")
    before.best_k_models = {before.best_model_path: before.best_model_score}
    return before.state_dict()


def test_a_run_that_was_moved_remembers_its_best(tmp_path, of_elsewhere):
    file = tmp_path / "now" / "checkpoints" / "best.ckpt"
    file.parent.mkdir(parents=True)
    file.touch()
    moved = BestCheckpoint(tmp_path / "now", "val/top1")
    moved.load_state_dict(of_elsewhere)
    assert moved.kth_value == moved.best_model_score == 0.9
    assert moved.best_k_models == {str(file): torch.tensor(0.9)}
    assert moved.best_model_path == moved.kth_best_model_path == str(file)


def test_a_run_that_goes_on_elsewhere_begins_with_no_best(tmp_path, of_elsewhere):
    other = BestCheckpoint(tmp_path / "other", "val/top1")
    other.load_state_dict(of_elsewhere)
    assert not other.best_k_models
    assert other.best_model_score is None


def test_a_run_that_has_no_best_yet_begins_with_none(tmp_path):
    """Of blocks that learn one by one the last has no metric before its turn."""
    file = tmp_path / "checkpoints" / "best.ckpt"
    file.parent.mkdir()
    file.touch()
    state = BestCheckpoint(tmp_path, "val/top1").state_dict()
    again = BestCheckpoint(tmp_path, "val/top1")
    again.load_state_dict(state)
    assert not again.best_k_models
    assert not again.best_model_path
