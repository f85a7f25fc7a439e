"""The cut: which units make up which block."""

import itertools
import random

import pytest
import torch

from losses.errors import NetworkError
from models.networks.cut import Cut, balanced_stops, cut_chain
from models.networks.heads.classifiers import AuxHead
from models.networks.memory.profile import activation_bytes, profile
from models.networks.mlp import MLP
from models.networks.resnet import CifarResNet, ResNet
from models.networks.vgg import VGG


def aux_head(shape):
    return AuxHead(shape, 10) if len(shape) == 3 else AuxHead(shape, 10, convs=0, fcs=1)


def cut(chain, num_blocks, *args, **kwargs):
    return cut_chain(chain, num_blocks, Cut(*args, **kwargs), aux_head)


def names(blocks):
    return [[name for name, _ in block.named_children()] for block in blocks]


@pytest.fixture(scope="module", autouse=True)
def _meta():
    with torch.device("meta"):
        yield


@pytest.fixture(scope="module")
def vgg():
    return VGG((3, 16, 16), 10, plan=(8, 8, "M", 16, 16, "M", 32), hidden=(32, 32))


PUBLISHED = {
    (32, "published"): [[16], [8, 8], [6, 5, 5], [4] * 4, [2] * 8, [1] * 16],
    (110, "published"): [
        [55],
        [28, 27],
        [19, 18, 18],
        [13, 14, 14, 14],
        [6, *[7] * 7],
        [3, *[3] * 8, *[4] * 7],
    ],
    (110, "published_memory"): [[55], [16, 39], [11, 11, 33], [8, 8, 12, 27]],
}
"""CIFAR ResNet of a depth, kind of cut → units in each block, for every K that the literature has."""


@pytest.mark.parametrize(("depth", "by"), PUBLISHED)
def test_published_cuts_of_cifar_resnets(depth, by):
    chain = CifarResNet((3, 32, 32), 10, depth)
    for sizes in PUBLISHED[depth, by]:
        blocks = cut(chain, len(sizes), by)
        assert [len(block) for block in blocks] == sizes
        assert list(itertools.chain(*names(blocks))) == chain.unit_names


def test_published_cut_of_resnet50_is_one_block_per_stage():
    chain = ResNet((3, 64, 64), 10, depth=50)
    assert [len(block) for block in cut(chain, 4, "published")] == [1 + 3, 4, 6, 3]
    assert [len(block) for block in cut(chain, 2, "published")] == [1 + 3 + 4, 6 + 3]


def test_cuts_of_the_depth_study_end_behind_residual_blocks_with_the_stem_in_the_first():
    chain = ResNet((3, 32, 32), 10, depth=18, stem="cifar")
    stages = ["layer1_0", "layer1_1", "layer2_0", "layer2_1", "layer3_0", "layer3_1", "layer4_0", "layer4_1"]
    assert names(cut(chain, 2, "published")) == [["stem", *stages[:4]], stages[4:]]
    assert names(cut(chain, 4, "published")) == [["stem", *stages[:2]], stages[2:4], stages[4:6], stages[6:]]
    assert names(cut(chain, 8, "published")) == [["stem", stages[0]], *([unit] for unit in stages[1:])]


@pytest.mark.parametrize(
    ("by", "num_blocks"),
    [*itertools.product(["activation_bytes", "macs", "units"], [1, 3, 7]), ("published", 1), ("published_memory", 1)],
)
def test_every_unit_is_in_one_block_in_order_with_its_name(vgg, by, num_blocks):
    blocks = cut(vgg, num_blocks, by)
    assert len(blocks) == num_blocks
    assert all(len(block) > 0 for block in blocks)
    assert list(itertools.chain(*names(blocks))) == vgg.unit_names
    assert [unit for block in blocks for unit in block] == list(vgg.units)


def test_cut_after_named_units(vgg):
    blocks = cut(vgg, 3, by="published", after=["conv1", "conv4"])  # names go before what is balanced
    assert names(blocks) == [["conv1"], ["conv2", "conv3", "conv4"], ["conv5", "fc1", "fc2"]]


@pytest.mark.parametrize("num_blocks", [2, 4, 9])
def test_cut_by_units_gives_even_sizes(num_blocks):
    chain = MLP((1, 4, 4), 10, hidden=[8] * 9)
    sizes = [len(block) for block in cut(chain, num_blocks, "units")]
    assert max(sizes) - min(sizes) <= 1


MEASURES = {"activation_bytes": activation_bytes, "macs": lambda costs: sum(cost.forward_macs for cost in costs)}


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("num_blocks", [2, 3])
def test_balanced_cut_is_the_best_of_all_cuts(vgg, by, num_blocks):
    def dearest(blocks):
        heads = {num_blocks - 1: vgg.classifier}
        costs = profile(blocks, vgg.image_shape, make_head=lambda k, shape: heads.get(k) or aux_head(shape))
        return max(map(MEASURES[by], costs))

    every = itertools.combinations(vgg.unit_names[:-1], num_blocks - 1)
    best = min(dearest(cut(vgg, num_blocks, after=list(after))) for after in every)
    assert dearest(cut(vgg, num_blocks, by)) == best
    assert Cut() == Cut("activation_bytes")


def test_the_networks_own_classifier_weighs_on_the_last_block():
    chain = MLP((1, 2, 4), 5000, hidden=[8] * 6)
    assert names(cut(chain, 2, "macs")) == [["fc1", "fc2", "fc3", "fc4", "fc5"], ["fc6"]]


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("largest", [2, 9, 1000])
def test_balanced_stops_equal_brute_force(additive, largest):
    rng = random.Random(f"{largest} {additive}")

    def rank(bounds, cost):
        costs = [cost(start, stop) for start, stop in itertools.pairwise(bounds)]
        return max(costs), sum(c * c for c in costs)

    for _ in range(60):
        num_units = rng.randint(1, 8)
        num_blocks = rng.randint(1, num_units)
        units = [rng.randint(0, largest) for _ in range(num_units)]
        heads = {pair: rng.randint(0, largest) for pair in itertools.combinations(range(num_units + 1), 2)}

        def cost(start, stop, units=units, heads=heads):
            return sum(units[start:stop]) if additive else heads[start, stop]

        stops = balanced_stops(num_units, num_blocks, cost)
        assert len(stops) == num_blocks
        assert stops[-1] == num_units
        assert stops == sorted({*stops} - {0})
        every = itertools.combinations(range(1, num_units), num_blocks - 1)
        assert rank([0, *stops], cost) == min(rank([0, *inner, num_units], cost) for inner in every)


@pytest.mark.parametrize(
    ("num_blocks", "options", "fault"),
    [
        *[(k, {"by": "units"}, rf"VGG has 7 units .*{k} blocks.*between 1 and 7") for k in (0, -1, 8)],
        (8, {"by": "published"}, "VGG has 7 units"),
        (2, {"by": "bytes"}, "A network is cut by activation_bytes, macs, units, published or .*not by 'bytes'"),
        (2, {"by": "published"}, r"VGG into 2 blocks.*known: none.*cut.by: activation_bytes"),
        (2, {"after": ["layer1"]}, r"no unit 'layer1'.*conv1, conv2, conv3, conv4, conv5, fc1, fc2"),
        (3, {"after": ["conv2", "conv2"]}, "once each and in their order.*conv2.*conv2"),
        (3, {"after": ["conv3", "conv1"]}, "once each and in their order.*conv3.*conv1"),
        (2, {"after": ["fc2"]}, "'fc2', the last unit"),
        *[(k, {"after": ["conv1", "conv2"]}, rf"makes 3 blocks.*num_blocks is {k}") for k in (1, 2, 4)],
    ],
)
def test_cuts_that_are_refused(vgg, num_blocks, options, fault):
    with pytest.raises(NetworkError, match=fault):
        cut(vgg, num_blocks, **options)


def test_missing_published_cut_is_refused_with_the_known_ones():
    resnet = CifarResNet((3, 32, 32), 10, depth=32)
    with pytest.raises(NetworkError, match=r"into 5 blocks under cut.by: published \(known: 1, 2, 3, 4, 8, 16\)"):
        cut(resnet, 5, "published")
    with pytest.raises(NetworkError, match=r"into 2 blocks under cut.by: published_memory \(known: none\)"):
        cut(resnet, 2, "published_memory")
