"""What every test shares."""

import os
from collections.abc import Iterator

import pytest

# Otherwise Lightning sets as many threads as there are cores when a run is one of DDP, and all later tests keep them.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests may run side by side: tiny tensors gain nothing from more threads."""
    import torch  # not above: the process that hands tests out reads this file first, and needs no torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_process_group() -> Iterator[None]:
    """What a run under DDP leaves behind would tell later ones that they are one process of several."""
    yield
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
