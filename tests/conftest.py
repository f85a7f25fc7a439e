"""What every test shares."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests may run side by side: tiny tensors gain nothing from more threads."""
    torch.set_num_threads(1)
