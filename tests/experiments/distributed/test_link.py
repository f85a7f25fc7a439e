"""What goes from process to process: a row per image, or nothing."""

import pytest
import torch

from experiments.distributed.link import Outbox
from losses.errors import UsageError


def test_tensors_with_more_rows_than_images_are_refused_before_anything_is_sent():
    """They would be cut in a smaller last batch."""
    outbox = Outbox(1, None, torch.device("cpu"))
    with pytest.raises(UsageError, match="here are tensors of 4 and 8 rows: hand on several"):
        outbox.send((torch.zeros(4, 3), {"both": torch.zeros(8, 3)}, None))
