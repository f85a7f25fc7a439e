"""Our ResNets compute what torchvision's do."""

import pytest
import torch
import torchvision
from torch import nn

from models.networks.resnet import ResNet, from_torchvision


def torchvision_resnet(depth):
    """A torchvision ResNet in which no two BatchNorm layers hold the same figures."""
    torch.manual_seed(depth)
    net = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=10)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            for tensor in (layer.running_var, layer.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
    return net.double()


def our_resnet(depth):
    with torch.device("meta"):
        return ResNet((3, 48, 48), 10, depth=depth)


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_weights_give_torchvision_outputs_and_statistics(depth):
    theirs, ours = torchvision_resnet(depth), our_resnet(depth)
    state = {key: tensor.clone() for key, tensor in from_torchvision(theirs.state_dict()).items()}
    ours.load_state_dict(state, assign=True)
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    for training in (True, False):
        with torch.no_grad():
            expected = theirs.train(training)(images)
            assert expected.std() > 0
            torch.testing.assert_close(ours.train(training)(images), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.state_dict(), from_torchvision(theirs.state_dict()))


@pytest.mark.parametrize("depth", [34, 101])
def test_deeper_ones_have_torchvisions_tensors(depth):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=10)
    our_resnet(depth).load_state_dict(from_torchvision(theirs.state_dict()), assign=True)
