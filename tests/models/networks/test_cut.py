"""The cut: which units make up which block."""

import itertools
import random

import pytest
import torch

from losses.errors import NetworkError
from models.networks.cut import Cut, balanced_stops, block_shapes, cut_chain
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


def spans(blocks):
    return [units[0] if len(units) == 1 else f"{units[0]} … {units[-1]}" for units in names(blocks)]


def peak_bytes(chain, blocks):
    last = len(blocks) - 1
    costs = profile(blocks, chain.image_shape, make_head=lambda k, s: chain.classifier if k == last else aux_head(s))
    return max(activation_bytes(block_and_head) for block_and_head in costs)


def slowest_macs(chain, blocks):
    last = len(blocks) - 1
    costs = profile(blocks, chain.image_shape, make_head=lambda k, s: chain.classifier if k == last else aux_head(s))
    return max(block.forward_macs + head.forward_macs for block, head in costs)


@pytest.fixture(scope="module", autouse=True)
def _meta():
    with torch.device("meta"):
        yield


@pytest.fixture(scope="module")
def resnet110():
    return CifarResNet((3, 32, 32), 10, depth=110)


@pytest.fixture(scope="module")
def resnet32():
    return CifarResNet((3, 32, 32), 10, depth=32)


@pytest.fixture(scope="module")
def vgg():
    return VGG((3, 16, 16), 10, plan=(8, 8, "M", 16, 16, "M", 32), hidden=(32, 32))


RESNET32 = {
    1: ["stem … layer3_4"],
    2: ["stem … layer2_1", "layer2_2 … layer3_4"],
    3: ["stem … layer1_4", "layer2_0 … layer2_4", "layer3_0 … layer3_4"],
    4: ["stem … layer1_2", "layer1_3 … layer2_1", "layer2_2 … layer3_0", "layer3_1 … layer3_4"],
    8: [
        *["stem … layer1_0", "layer1_1 … layer1_2", "layer1_3 … layer1_4", "layer2_0 … layer2_1"],
        *["layer2_2 … layer2_3", "layer2_4 … layer3_0", "layer3_1 … layer3_2", "layer3_3 … layer3_4"],
    ],
    16: [
        *["stem", "layer1_0", "layer1_1", "layer1_2", "layer1_3", "layer1_4"],
        *["layer2_0", "layer2_1", "layer2_2", "layer2_3", "layer2_4"],
        *["layer3_0", "layer3_1", "layer3_2", "layer3_3", "layer3_4"],
    ],
}
RESNET110 = {
    1: ["stem … layer3_17"],
    2: ["stem … layer2_8", "layer2_9 … layer3_17"],
    3: ["stem … layer1_17", "layer2_0 … layer2_17", "layer3_0 … layer3_17"],
    4: ["stem … layer1_11", "layer1_12 … layer2_7", "layer2_8 … layer3_3", "layer3_4 … layer3_17"],
    8: [
        *["stem … layer1_4", "layer1_5 … layer1_11", "layer1_12 … layer2_0", "layer2_1 … layer2_7"],
        *["layer2_8 … layer2_14", "layer2_15 … layer3_3", "layer3_4 … layer3_10", "layer3_11 … layer3_17"],
    ],
    16: [
        *["stem … layer1_1", "layer1_2 … layer1_4", "layer1_5 … layer1_7", "layer1_8 … layer1_10"],
        *["layer1_11 … layer1_13", "layer1_14 … layer1_16", "layer1_17 … layer2_1", "layer2_2 … layer2_4"],
        *["layer2_5 … layer2_7", "layer2_8 … layer2_11", "layer2_12 … layer2_15", "layer2_16 … layer3_1"],
        *["layer3_2 … layer3_5", "layer3_6 … layer3_9", "layer3_10 … layer3_13", "layer3_14 … layer3_17"],
    ],
}
RESNET110_MEMORY = {
    2: ["stem … layer1_14", "layer1_15 … layer3_17"],
    3: ["stem … layer1_9", "layer1_10 … layer2_2", "layer2_3 … layer3_17"],
    4: ["stem … layer1_6", "layer1_7 … layer1_14", "layer1_15 … layer2_8", "layer2_9 … layer3_17"],
}


@pytest.mark.parametrize("num_blocks", RESNET32)
def test_published_cuts_of_resnet32(resnet32, num_blocks):
    assert spans(cut(resnet32, num_blocks, "published")) == RESNET32[num_blocks]


def test_the_wide_resnet32_is_cut_like_the_narrow_one():
    wide = CifarResNet((3, 32, 32), 10, depth=32, widths=(32, 32, 64, 128))
    assert spans(cut(wide, 4, "published")) == RESNET32[4]


@pytest.mark.parametrize("num_blocks", RESNET110)
def test_published_cuts_of_resnet110(resnet110, num_blocks):
    assert spans(cut(resnet110, num_blocks, "published")) == RESNET110[num_blocks]


@pytest.mark.parametrize("num_blocks", RESNET110_MEMORY)
def test_published_memory_balanced_cuts_of_resnet110(resnet110, num_blocks):
    assert spans(cut(resnet110, num_blocks, "published_memory")) == RESNET110_MEMORY[num_blocks]


def test_published_cut_of_resnet50_is_one_block_per_stage():
    chain = ResNet((3, 64, 64), 10, depth=50)
    stages = ["stem … layer1_2", "layer2_0 … layer2_3", "layer3_0 … layer3_5", "layer4_0 … layer4_2"]
    assert spans(cut(chain, 4, "published")) == stages
    assert spans(cut(chain, 2, "published")) == ["stem … layer2_3", "layer3_0 … layer4_2"]


@pytest.mark.parametrize("by", ["activation_bytes", "macs", "units"])
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 6, 7])
def test_every_unit_is_in_one_block_in_order_with_its_name(vgg, by, num_blocks):
    blocks = cut(vgg, num_blocks, by)
    assert len(blocks) == num_blocks
    assert all(len(block) > 0 for block in blocks)
    assert list(itertools.chain(*names(blocks))) == vgg.unit_names
    assert [unit for block in blocks for unit in block] == list(vgg.units)


@pytest.mark.parametrize("by", ["activation_bytes", "macs", "units", "published", "published_memory"])
def test_one_block_is_the_whole_network_however_it_is_cut(vgg, by):
    assert names(cut(vgg, 1, by)) == [vgg.unit_names]


def test_cut_after_named_units(vgg):
    blocks = cut(vgg, 3, after=["conv1", "conv4"])
    assert names(blocks) == [["conv1"], ["conv2", "conv3", "conv4"], ["conv5", "fc1", "fc2"]]


def test_names_go_before_what_is_balanced(vgg):
    assert names(cut(vgg, 2, by="published", after=["conv1"]))[0] == ["conv1"]


def test_default_balances_activation_bytes(vgg):
    assert names(cut(vgg, 3)) == names(cut(vgg, 3, "activation_bytes"))


@pytest.mark.parametrize("num_blocks", range(1, 10))
def test_cut_by_units_gives_even_sizes(num_blocks):
    chain = MLP((1, 4, 4), 10, hidden=[8] * 9)
    sizes = [len(block) for block in cut(chain, num_blocks, "units")]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("by", "cost"), [("activation_bytes", peak_bytes), ("macs", slowest_macs)])
@pytest.mark.parametrize("num_blocks", [2, 3])
def test_balanced_cut_is_the_best_of_all_cuts(vgg, by, cost, num_blocks):
    every = itertools.combinations(vgg.unit_names[:-1], num_blocks - 1)
    best = min(cost(vgg, cut(vgg, num_blocks, after=list(after))) for after in every)
    assert cost(vgg, cut(vgg, num_blocks, by)) == best


@pytest.mark.parametrize("seed", range(10))
def test_cut_by_bytes_is_the_best_of_all_cuts_of_uneven_layers(seed):
    rng = random.Random(seed)
    chain = MLP((1, 4, 4), 10, hidden=[rng.randint(4, 40) for _ in range(6)], batch_norm=False)
    every = itertools.combinations(chain.unit_names[:-1], 2)
    best = min(peak_bytes(chain, cut(chain, 3, after=list(after))) for after in every)
    assert peak_bytes(chain, cut(chain, 3)) == best


def test_the_networks_own_classifier_weighs_on_the_last_block():
    chain = MLP((1, 2, 4), 5000, hidden=[8] * 6)
    assert names(cut(chain, 2, "macs")) == [["fc1", "fc2", "fc3", "fc4", "fc5"], ["fc6"]]


@pytest.mark.parametrize("num_blocks", [2, 4])
def test_cut_by_bytes_lowers_the_peak_of_resnet110(resnet110, num_blocks):
    by_bytes, by_units = (cut(resnet110, num_blocks, by) for by in ("activation_bytes", "units"))
    assert peak_bytes(resnet110, by_bytes) < 0.75 * peak_bytes(resnet110, by_units)
    assert peak_bytes(resnet110, by_bytes) <= peak_bytes(resnet110, cut(resnet110, num_blocks, "published_memory"))


def brute_force(num_units, num_blocks, cost):
    """Least (dearest block, sum of squares) over all cuts."""
    ranks = []
    for inner in itertools.combinations(range(1, num_units), num_blocks - 1):
        costs = [cost(a, b) for a, b in itertools.pairwise([0, *inner, num_units])]
        ranks.append((max(costs), sum(c * c for c in costs)))
    return min(ranks)


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("largest", [2, 9, 1000])
@pytest.mark.parametrize("seed", range(6))
def test_balanced_stops_equal_brute_force(additive, largest, seed):
    rng = random.Random(f"{seed} {largest} {additive}")
    for _ in range(10):
        num_units = rng.randint(1, 8)
        num_blocks = rng.randint(1, num_units)
        units = [rng.randint(0, largest) for _ in range(num_units)]
        heads = {pair: rng.randint(0, largest) for pair in itertools.combinations(range(num_units + 1), 2)}

        def cost(start, stop, units=units, heads=heads):
            return sum(units[start:stop]) if additive else heads[start, stop]

        stops = balanced_stops(num_units, num_blocks, cost)
        assert len(stops) == num_blocks
        assert stops[-1] == num_units
        assert stops == sorted(set(stops))
        assert stops[0] > 0
        costs = [cost(a, b) for a, b in itertools.pairwise([0, *stops])]
        assert (max(costs), sum(c * c for c in costs)) == brute_force(num_units, num_blocks, cost)


@pytest.mark.parametrize("num_blocks", [0, -1, 8])
@pytest.mark.parametrize("by", ["units", "published"])
def test_number_of_blocks_must_fit_the_units(vgg, num_blocks, by):
    with pytest.raises(NetworkError, match=rf"VGG has 7 units .*{num_blocks} blocks.*between 1 and 7"):
        cut(vgg, num_blocks, by)


def test_unknown_name_is_refused_with_the_known_ones(vgg):
    with pytest.raises(NetworkError, match=r"no unit 'layer1'.*conv1, conv2, conv3, conv4, conv5, fc1, fc2"):
        cut(vgg, 2, after=["layer1"])


@pytest.mark.parametrize("after", [["conv2", "conv2"], ["conv3", "conv1"]])
def test_names_twice_or_out_of_order_are_refused(vgg, after):
    with pytest.raises(NetworkError, match=rf"once each and in their order.*{after[0]}.*{after[1]}"):
        cut(vgg, 3, after=after)


def test_cut_after_the_last_unit_is_refused(vgg):
    with pytest.raises(NetworkError, match="'fc2', the last unit"):
        cut(vgg, 2, after=["fc2"])


@pytest.mark.parametrize("num_blocks", [1, 2, 4])
def test_number_of_names_must_fit_the_number_of_blocks(vgg, num_blocks):
    with pytest.raises(NetworkError, match=rf"names 2 cuts.* 3 blocks.*num_blocks is {num_blocks}"):
        cut(vgg, num_blocks, after=["conv1", "conv2"])


def test_missing_published_cut_is_refused_with_the_known_ones(resnet32, vgg):
    with pytest.raises(
        NetworkError, match=r"ResNet-32 into 5 blocks under cut.by: published \(known: 1, 2, 3, 4, 8, 16\)"
    ):
        cut(resnet32, 5, "published")
    with pytest.raises(NetworkError, match=r"ResNet-32 into 2 blocks under cut.by: published_memory \(known: none\)"):
        cut(resnet32, 2, "published_memory")
    with pytest.raises(NetworkError, match=r"VGG into 2 blocks.*known: none.*cut.by: activation_bytes"):
        cut(vgg, 2, "published")


def test_feature_shapes(vgg):
    assert dict(zip(vgg.unit_names, block_shapes(vgg, vgg.units))) == {
        "conv1": (8, 16, 16),
        "conv2": (8, 8, 8),
        "conv3": (16, 8, 8),
        "conv4": (16, 4, 4),
        "conv5": (32, 4, 4),
        "fc1": (32,),
        "fc2": (32,),
    }
