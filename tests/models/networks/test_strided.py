"""The small convolutional network without pooling."""

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.networks.strided import StridedCNN


def test_units_shapes_and_classifier():
    network = StridedCNN((1, 28, 28), 10)
    assert network.unit_names == ["conv1", "conv2", "conv3"]
    x, shapes = torch.randn(2, 1, 28, 28), []
    for unit in network.units:
        convolution, rectifier = unit
        assert (convolution.kernel_size, convolution.padding) == ((3, 3), (1, 1))
        assert isinstance(rectifier, nn.ReLU)
        x = unit(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(32, 14, 14), (64, 7, 7), (128, 7, 7)]
    assert network.classifier[-1].in_features == 128 * 16
    assert network(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert network.name == "StridedCNN-32-64-128"


def test_small_images_and_odd_sides():
    assert StridedCNN((3, 7, 5), 4, channels=[4, 6], strides=[2, 2])(torch.randn(2, 3, 7, 5)).shape == (2, 4)


@pytest.mark.parametrize(("channels", "strides"), [([8, 8], [2]), ([], [])])
def test_every_convolution_needs_a_stride(channels, strides):
    with pytest.raises(NetworkError, match="of the same length"):
        StridedCNN((1, 8, 8), 10, channels=channels, strides=strides)
