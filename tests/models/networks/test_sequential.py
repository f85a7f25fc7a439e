"""An ``nn.Sequential`` as a chain: its units, its classifier, the same function; what cannot be one is told."""

from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import nn

from losses.errors import NetworkError
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.sequential import build_chain

SHAPE, CLASSES = (1, 8, 8), 10


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def layers(image_shape, num_classes) -> nn.Sequential:
    maps = [conv(image_shape[0], 6), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), conv(6, 8), nn.GroupNorm(2, 8)]
    return nn.Sequential(*maps, nn.PReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 10))


def named(image_shape, num_classes) -> nn.Sequential:
    parts = layers(image_shape, num_classes)
    return nn.Sequential(OrderedDict(stem=parts[:4], body=parts[4:7], head=parts[7:]))


def hidden(image_shape, num_classes) -> nn.Sequential:
    relu = nn.ReLU()  # one module in two places
    vectors = [nn.Flatten(), nn.LazyLinear(12), relu, nn.Linear(12, 12), relu, nn.Dropout()]
    return nn.Sequential(conv(image_shape[0], 4), nn.ReLU(), *vectors, nn.Linear(12, num_classes))


class Wide(nn.Sequential):
    def __init__(self, image_shape, num_classes, width=4):
        super().__init__(conv(image_shape[0], width), nn.ReLU(), nn.Flatten(), nn.Linear(64 * width, num_classes))


@pytest.mark.parametrize(
    ("network", "names", "classifier"),
    [
        (layers, {"layer0": "0123", "layer4": "456"}, ["7", "8", "9", "10"]),
        (named, {"stem": "0123", "body": "456"}, ["7", "8", "9", "10"]),
        (hidden, {"layer0": "01", "layer3": "234", "layer5": "567"}, None),
        (Wide, {"layer0": "01"}, ["2", "3"]),
    ],
    ids=["layers", "named", "hidden", "class"],
)
def test_a_sequential_is_a_chain_of_its_layers_and_computes_the_same(network, names, classifier):
    torch.manual_seed(0)
    chain = build_chain(network, SHAPE, CLASSES)
    assert chain.name == network.__name__
    assert {name: "".join(dict(unit.named_children())) for name, unit in chain.units.named_children()} == names
    if classifier is None:
        assert isinstance(chain.classifier, nn.Linear)
    else:
        assert list(dict(chain.classifier.named_children())) == classifier
    assert all(part.training for part in chain.modules())
    torch.manual_seed(0)
    whole = network(SHAPE, CLASSES).eval()
    images = torch.randn(3, *SHAPE)
    whole(images[:1])  # lazy layers
    whole.load_state_dict(dict(zip(whole.state_dict(), chain.state_dict().values(), strict=True)))
    assert torch.equal(chain.eval()(images), whole(images))


@pytest.mark.parametrize("pooling", [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d])
def test_blocks_have_maps_before_whatever_makes_vectors_of_them(pooling):
    def network(image_shape, num_classes):
        return nn.Sequential(conv(1, 4), nn.ReLU(), pooling(1), nn.Flatten(), nn.Linear(4, num_classes))

    assert build_chain(network, SHAPE, CLASSES).units(torch.zeros(2, *SHAPE)).shape == (2, 4, 8, 8)


def test_the_weights_are_drawn_as_the_function_alone_draws_them():
    torch.manual_seed(0)
    chain = build_chain(layers, SHAPE, CLASSES)
    torch.manual_seed(0)
    assert torch.equal(chain.units[0][0].weight, layers(SHAPE, CLASSES)[0].weight)
    assert chain.units[0][1].num_batches_tracked == 0


def test_options_go_to_a_class_of_ones_own():
    model = DecoupledGreedy(partial(Wide, width=6), SHAPE, CLASSES, num_blocks=1)
    assert model.blocks[0][0][0].out_channels == 6


def shared(image_shape, num_classes) -> nn.Sequential:
    layer = nn.Linear(64, 64)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.Linear(64, num_classes))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (lambda shape, n: nn.Linear(64, n), "makes a Linear, whose parts do not say .* torch.nn.Sequential"),
        (lambda shape, n: nn.Sequential(nn.Flatten(), nn.Linear(64, n)), "is a classifier alone"),
        (lambda shape, n: nn.Sequential(), "gives .* for an image"),
        (lambda shape, n: Wide(shape, 7), r"Wide gives \(7,\) for an image, and the data has 10 classes"),
        (
            lambda shape, n: Wide((3, 8, 8), n),
            r"0 of Wide, a Conv2d, .*, \(1, 8, 8\), for .*expected input",
        ),
        (shared, "share weights"),
        (lambda shape: None, "has to take image_shape and num_classes before its options: too many positional"),
        (lambda shape, n, width: None, "missing a required argument: 'width'"),
        (partial(partial, Wide, depth=3), "unexpected keyword argument 'depth'"),
    ],
)
def test_what_is_no_chain_is_told(network, said):
    with pytest.raises(NetworkError, match=said):
        build_chain(network, SHAPE, CLASSES)
