"""InfoPro: weights, losses against slow references, isolation, published cost."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F
from training import assert_isolated, evaluated

from datamodules.batch import Batch
from experiments.measure.cost import network_cost
from losses.errors import UsageError
from models.methods.infopro import InfoPro, InfoProHead
from models.networks.cut import Cut
from models.networks.heads.classifiers import AuxHead
from models.networks.resnet import CifarResNet
from models.networks.vgg import VGG

SHAPE, CLASSES = (3, 8, 8), 5
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
STATISTICS = {"image_mean": MEAN, "image_std": STD}


def build(num_blocks=4, **arguments):
    torch.manual_seed(0)
    network = partial(VGG, plan=[8, "M", 8, 16, 16])
    task = {"network": network, "image_shape": SHAPE, "num_classes": CLASSES, "cut": Cut(by="units"), **STATISTICS}
    small = {"weights": ((5.0, 1.0), (1.0, 3.0)), "head": partial(AuxHead, hidden=8), "embedding": 6}
    return InfoPro(num_blocks=num_blocks, **(task | small | arguments))


def published(num_blocks, width=1, last_head=None):
    """As in the papers, of a ResNet-32 on CIFAR-10."""
    with torch.device("meta"):
        return InfoPro(
            network=partial(CifarResNet, depth=32, widths=[width * w for w in (16, 16, 32, 64)]),
            image_shape=(3, 32, 32),
            num_classes=10,
            num_blocks=num_blocks,
            cut=Cut(by="published"),
            head=partial(AuxHead, hidden=128 * width),
            decoder_width=12 * width,
            last_head=last_head,
            **STATISTICS,
        )


def draw(size=12):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(size, *SHAPE, generator=generator)
    images = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return Batch(images, torch.randint(CLASSES, (size,), generator=generator)), pixels


def contrast(z, labels):
    """Khosla et al. (2020), Eq. 2, sample by sample."""
    z = F.normalize(z)
    terms = []
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if positives:
            normaliser = torch.logsumexp(torch.stack([z[i] @ z[a] / 0.07 for a in others]), 0)
            terms.append(-sum(z[i] @ z[p] / 0.07 - normaliser for p in positives) / len(positives))
    return torch.stack(terms).mean()


@pytest.mark.parametrize(
    ("num_blocks", "expected"),
    [
        (1, []),
        (2, [(5, 1)]),
        (4, [(6, 0), (3.5, 1), (1, 2)]),
        (8, [(5 - 5 * k / 6, 2 * k / 6) for k in range(7)]),
        (16, [(5 - 4.8 * k / 14, 0.05 + 0.45 * k / 14) for k in range(15)]),
    ],
)
def test_published_weights_are_linear_from_the_first_to_the_last_but_one(num_blocks, expected):
    for found, pair in zip(published(num_blocks).weights, expected, strict=True):
        assert found == pytest.approx(pair)


@pytest.mark.parametrize("loss", ["contrast", "softmax"])
def test_loss_is_weighted_reconstruction_and_task(loss):
    model, (batch, pixels) = build(loss=loss), draw()
    features = model.blocks[0](batch.images)
    reconstruction, z = model.heads[0](features)
    assert z.shape[1] == (6 if loss == "contrast" else CLASSES)
    task = contrast(z, batch.labels) if loss == "contrast" else F.cross_entropy(z, batch.labels)
    p = reconstruction.sigmoid()
    rebuild = -(pixels * p.log() + (1 - pixels) * (1 - p).log()).mean()
    torch.testing.assert_close(model.local_loss(0, features, batch), 5 * rebuild + task, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", ["contrast", "softmax"])
def test_loss_of_a_block_reaches_that_block_only(loss):
    assert_isolated(build(loss=loss), draw()[0])


@pytest.mark.parametrize(
    ("loss", "names"), [("contrast", ["block4"]), ("softmax", [f"block{k}" for k in (1, 2, 3, 4)])]
)
def test_only_heads_that_classify_predict(loss, names):
    model, (batch, _) = build(loss=loss).eval(), draw()
    logits = model.block_logits(batch.images)
    assert list(logits) == names
    assert all(z.shape == (12, CLASSES) for z in logits.values())
    torch.testing.assert_close(logits["block4"], model(batch.images))
    assert ("ensemble/top1" in evaluated(model, batch)) == (loss == "softmax")


@pytest.mark.parametrize(
    ("width", "num_blocks", "macs"),
    [
        *[(1, k, m) for k, m in ((2, 38.2), (4, 26.7), (8, 18.1), (16, 13.4))],
        *[(2, k, m) for k, m in ((2, 149.8), (4, 105.5), (8, 71.8), (16, 52.8))],
    ],
)
def test_slowest_node_is_the_plotted_one(width, num_blocks, macs):
    """GN-DGL, Figures: M MACs, read off a plot (method sheet, section 10)."""
    assert network_cost(published(num_blocks, width), 2).slowest_node_macs / 1e6 == pytest.approx(macs, rel=0.02)


def test_the_last_block_classifies_through_the_networks_classifier_or_the_head_of_neuron_groups_code():
    plain, with_head = published(4), published(4, last_head=AuxHead)
    assert isinstance(with_head.heads[-1], AuxHead)
    assert not isinstance(plain.heads[-1], AuxHead)
    assert network_cost(with_head, 2).nodes[-1].forward_macs - network_cost(plain, 2).nodes[-1].forward_macs == 1201024
    assert_isolated(build(last_head=partial(AuxHead, hidden=8)), draw()[0])


def test_decoder_is_that_of_the_published_code():
    """Its form and its parameters, biases included: 9·16·12 + 12 of a convolution, 24, 9·12·3 + 3."""
    decoder = InfoProHead(AuxHead((16, 8, 8), 10), (16, 8, 8), (3, 32, 32), 12).decoder.eval()
    assert sum(p.numel() for p in decoder.parameters()) == 1740 + 24 + 327
    features = torch.randn(2, 16, 8, 8)
    _, first, norm, _, last = decoder
    hidden = F.interpolate(features, size=[32, 32], mode="bilinear", align_corners=True)
    hidden = F.relu(F.conv2d(hidden, first.weight, first.bias, padding=1) / (1 + norm.eps) ** 0.5)
    expected = F.conv2d(hidden, last.weight, last.bias, padding=1)
    torch.testing.assert_close(decoder(features), expected)


def test_what_infopro_cannot_do():
    with pytest.raises(UsageError, match="num_groups must be 1, not 2"):
        build(num_groups=2)
    with pytest.raises(UsageError, match="published for K = 2, 4, 8, 16, not 3"):
        build(3, weights=None)
