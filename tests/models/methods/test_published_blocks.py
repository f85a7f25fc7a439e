"""Blockwise Barlow Twins is the published network: losses and gradients of all blocks, released weights."""

import math
from functools import partial

import pytest
import torch
import yaml
from lightly.loss import BarlowTwinsLoss
from lightly.utils.scheduler import CosineWarmupScheduler
from reference.blockwise_ssl import Backbone, PublishedBlocks, add_noise
from torch import nn
from torchvision.models.resnet import Bottleneck

from datamodules.batch import Batch
from experiments.run.errors import RunError
from experiments.studies.released_blocks import RECIPE, in_blocks, load_released, released_model
from losses.errors import NetworkError
from models.methods.blockwise_ssl import BlockwiseSSL
from models.networks.cut import Cut
from models.networks.heads.embeddings import BiasFreeProjector
from models.networks.heads.expansion import ConvExpansion
from models.networks.layers import noise
from models.networks.resnet import ResNet, from_torchvision
from models.parts.optimizers import BlockLARS

SHAPE, WIDTH, EXPANDED = (3, 32, 32), 24, 96


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    network = PublishedBlocks(EXPANDED, WIDTH).double()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # of which some begin as 0, and hide what is before them
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    return network


def ours():
    """The same in our words; the first block's expanded map does not fit into a piece."""
    return BlockwiseSSL(
        partial(ResNet, depth=18),
        SHAPE,
        num_classes=10,
        cut=Cut("published"),
        loss=partial(BarlowTwinsLoss, lambda_param=5.1e-3),
        loss_scale=0.024,
        pooling=partial(ConvExpansion, piece_mib=0.1),
        expand_dim=EXPANDED,
        projector=partial(BiasFreeProjector, widths=(WIDTH,) * 3),
        noise=noise.FeatureNoise("all", 0.25),
    ).double()


def test_losses_and_gradients_of_all_blocks_are_the_published_ones(published, monkeypatch):
    drawn = {}

    def normal(x, seed):
        return drawn.setdefault(seed, torch.randn(x.shape, dtype=x.dtype)).clone()

    monkeypatch.setattr(noise, "_normal", normal)
    model = ours().train()
    load_released(model, published.backbone.state_dict())
    for head, projector in zip(model.heads, published.projectors, strict=True):
        head.projector.layers.load_state_dict(projector.state_dict())

    generator = torch.Generator().manual_seed(1)
    a = torch.randn(6, *SHAPE, dtype=torch.float64, generator=generator)
    views = a, a + 0.3 * torch.randn(a.shape, dtype=torch.float64, generator=generator)
    losses = []
    monkeypatch.setattr(model, "update_block", lambda k, loss: (loss.backward(), losses.append(loss)))
    model.training_step(Batch(a, torch.zeros(6), ((1.0, *views),)), 0)
    assert len(drawn) == 8  # of four blocks and two views, which go through a block one after the other
    epsilon = list(drawn.values())
    expected = published.step(views, lambda view, k, x: add_noise(x, epsilon[2 * (k - 1) + view]))
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=1e-10, atol=1e-12)

    parts = [*published.backbone.named_parameters()]
    gradients = in_blocks(model, {name: p.grad for name, p in parts})
    for k, projector in enumerate(published.projectors):
        gradients |= {f"heads.{k}.projector.layers.{name}": p.grad for name, p in projector.named_parameters()}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-12, msg=name)
    for name, statistics in in_blocks(model, dict(published.backbone.named_buffers())).items():
        torch.testing.assert_close(model.get_buffer(name), statistics, rtol=1e-10, atol=1e-12, msg=name)


def test_released_weights_give_the_published_features(published):
    """What a probe reads: of the pooling head, and of the block's own output."""
    model = ours()
    load_released(model, published.backbone.state_dict())
    images = torch.randn(3, *SHAPE, dtype=torch.float64)
    found = model.eval().block_features(images)
    expected = published.backbone.eval().pooled(images, lambda k, x: x)
    for k, pooled in enumerate(expected, start=1):
        torch.testing.assert_close(found[f"block{k}/cbe"], pooled, rtol=1e-10, atol=1e-12)


def test_other_files_are_no_released_ones(published):
    state = published.backbone.state_dict()
    del state["pool_conv_block_3.0.weight"]
    with pytest.raises(RunError, match=r"it lacks heads\.2\.pooling\.conv\.weight"):
        load_released(ours(), state)
    with pytest.raises(NetworkError, match=r"no tensor 'backbone\.conv1\.weight'"):
        from_torchvision({"backbone.conv1.weight": torch.zeros(1)})


def test_the_released_resnet50_fits_the_published_recipe():
    recipe = yaml.safe_load(RECIPE.read_text())
    with torch.device("meta"):
        model, released = released_model(recipe), Backbone(2048, Bottleneck, (3, 4, 6, 3))
    load_released(model, released.state_dict())
    assert all(name.startswith("heads") for name in model.state_dict().keys() - in_blocks(model, released.state_dict()))


def published_rate(step):
    """Warm-up from 0 in 10 of 300 epochs of 625 steps, then half a cosine to a thousandth of the peak."""
    if step < 6250:
        return 1.6 * step / 6250
    share = 0.5 * (1 + math.cos(math.pi * (step - 6250) / (187500 - 6250)))
    return 1.6 * (share + 0.001 * (1 - share))


def test_the_recipe_has_the_published_rate_in_every_step():
    arguments = yaml.safe_load(RECIPE.read_text())["model"]["init_args"]
    optimizer = BlockLARS([nn.Parameter(torch.ones(2, 2))], **arguments["optimizer"]["init_args"])
    schedule = CosineWarmupScheduler(optimizer, **arguments["scheduler"]["init_args"])
    for step in (0, 1, 3125, 6249, 6250, 6251, 100_000, 187_498, 187_499):
        assert 1.6 * schedule.scale_lr(step) == pytest.approx(published_rate(step), rel=1e-9, abs=1e-12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
