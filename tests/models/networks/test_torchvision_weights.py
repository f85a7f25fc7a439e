"""Our ResNets compute what torchvision's do."""

import pytest
import torch
import torchvision
from torch import nn

from models.networks.resnet import ResNet, from_torchvision


def torchvision_resnet(depth, classes=10):
    """A torchvision ResNet in which no two BatchNorm layers hold the same figures."""
    torch.manual_seed(depth)
    net = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=classes)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)
            for tensor in (layer.running_var, layer.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
    return net.double()


def ours_with_weights_of(net, depth, classes=10):
    with torch.device("meta"):
        chain = ResNet((3, 64, 64), classes, depth=depth)
    state = {key: tensor.clone() for key, tensor in from_torchvision(net.state_dict()).items()}
    chain.load_state_dict(state, assign=True)
    return chain


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_torchvision_weights_give_torchvision_outputs_in_eval(depth):
    theirs = torchvision_resnet(depth).eval()
    ours = ours_with_weights_of(theirs, depth).eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(images)
        assert expected.std() > 0
        torch.testing.assert_close(ours(images), expected, rtol=1e-10, atol=0)


def test_torchvision_weights_give_torchvision_outputs_and_statistics_in_training():
    theirs = torchvision_resnet(18).train()
    ours = ours_with_weights_of(theirs, 18).train()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-9, atol=1e-12)
    for key, tensor in from_torchvision(theirs.state_dict()).items():
        torch.testing.assert_close(ours.state_dict()[key], tensor)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_parameter_counts_equal_torchvisions(depth):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None)
        ours = ResNet((3, 224, 224), 1000, depth=depth)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
