"""What the tests of data modules share."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from datamodules.base import ImageDataModule


@pytest.fixture
def ready() -> Callable[..., ImageDataModule]:
    """Sets a data module up as a trainer would that stands at a given step."""

    def set_up(module, stage="fit", step=0, limit=1.0, training=True, process=(0, 1)):
        rank, processes = process
        module.trainer = SimpleNamespace(
            global_step=step, limit_train_batches=limit, training=training, global_rank=rank, world_size=processes
        )
        module.setup(stage)
        return module

    return set_up
