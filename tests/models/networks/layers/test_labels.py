"""Labels in the input, and the ReLU that lets gradients through."""

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.networks.layers.labels import AppendedLabel, OverlaidLabel
from models.networks.layers.straight_through import StraightThroughReLU, end_straight_through


def test_an_overlaid_label_replaces_the_first_pixels():
    images = torch.rand(2, 1, 3, 6)
    label = OverlaidLabel((1, 3, 6), 4, strength=2.0)
    found = label(images, torch.tensor([3, 0]))
    assert found[:, 0, 0, :4].tolist() == [[0, 0, 0, 2], [2, 0, 0, 0]]
    assert torch.equal(found.flatten(1)[:, 4:], images.flatten(1)[:, 4:])
    assert label(images)[:, 0, 0, :4].tolist() == [[0.5] * 4] * 2
    assert not torch.equal(images[:, 0, 0, :4], label(images)[:, 0, 0, :4])  # the images stay as they were
    assert label.shape == (1, 3, 6)


def test_an_appended_label_keeps_all_pixels():
    images = torch.rand(2, 3, 2, 2)
    label = AppendedLabel((3, 2, 2), 2)
    found = label(images, torch.tensor([1, 0]))
    assert found.shape[1:] == label.shape == (1, 1, 14)
    assert torch.equal(found.flatten(1)[:, :12], images.flatten(1))
    assert found.flatten(1)[:, 12:].tolist() == [[0, 1], [1, 0]]
    assert label(images).flatten(1)[:, 12:].tolist() == [[0.5, 0.5]] * 2


@pytest.mark.parametrize(
    ("shape", "told"), [((1, 8, 8), "1 channel and 8 pixels"), ((3, 32, 32), "3 channels and 32 pixels")]
)
def test_images_without_room_for_a_label_are_refused(shape, told):
    with pytest.raises(NetworkError, match=f"{told}.*AppendedLabel"):
        OverlaidLabel(shape, 10)
    OverlaidLabel((1, 10, 10), 10)


def test_gradients_go_straight_through():
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    y = StraightThroughReLU()(x)
    assert y.tolist() == [0, 2]
    (y * torch.tensor([3.0, 5.0])).sum().backward()
    assert x.grad.tolist() == [3, 5]


def test_only_the_last_relu_of_a_block_is_replaced():
    block = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    end_straight_through(block, "block 1")
    assert [type(block[i][1]) for i in (0, 1)] == [nn.ReLU, StraightThroughReLU]


def test_a_block_that_ends_otherwise_is_refused():
    with pytest.raises(NetworkError, match="block 2 ends with Dropout: set --model"):
        end_straight_through(nn.Sequential(nn.ReLU(), nn.Dropout()), "block 2")
