"""BatchNorm's statistics without the noise that a network was trained with."""

import json
from functools import partial

import pytest
import torch
from helpers import summary
from torch import nn

from datamodules.digits import Digits
from experiments.cli import main
from experiments.probing.batch_norm import reestimate
from experiments.probing.features import Splits
from experiments.run.errors import RunError
from models.methods.backprop import Backprop
from models.methods.blockwise_ssl import BlockwiseSSL
from models.networks.heads.embeddings import BiasFreeProjector
from models.networks.layers.noise import FeatureNoise
from models.networks.mlp import MLP
from models.networks.vgg import VGG


def noisy() -> BlockwiseSSL:
    """Two blocks with dropout, noise between them, and expanding heads whose maps are made in pieces."""
    torch.manual_seed(0)
    network = partial(VGG, plan=(8, "M", 8), dropout=0.5)
    projector = partial(BiasFreeProjector, widths=[8])
    return BlockwiseSSL(network, (1, 8, 8), 10, 2, expand_dim=16, projector=projector, noise=FeatureNoise(sigma=3.0))


def slow_statistics(model: BlockwiseSSL, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean over the batches of each channel's mean and unbiased variance, block by block by hand."""
    seen: dict[str, list[torch.Tensor]] = {}

    def normalised(name: str, layer: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        rows = x.transpose(0, 1).flatten(1)
        mean, variance = rows.mean(1), rows.var(1)
        seen.setdefault(f"{name}.running_mean", []).append(mean)
        seen.setdefault(f"{name}.running_var", []).append(variance)
        biased = rows.var(1, correction=0)
        x = (x - mean.view(-1, 1, 1)) / (biased.view(-1, 1, 1) + layer.eps).sqrt()
        return x * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)

    for x in batches:
        for k, (block, head) in enumerate(zip(model.blocks, model.heads, strict=True)):
            for name, layer in block.named_modules():
                if isinstance(layer, nn.BatchNorm2d):
                    x = normalised(f"blocks.{k}.{name}", layer, x)
                elif not list(layer.children()) and not isinstance(layer, nn.Dropout):
                    x = layer(x)
            normalised(f"heads.{k}.pooling.bn", head.pooling.bn, head.pooling.conv(x))
    return {name: torch.stack(values).mean(0) for name, values in seen.items()}


@torch.no_grad()
def test_statistics_are_the_averages_over_clean_batches():
    model, batches = noisy(), list(torch.randn(3, 10, 1, 8, 8))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(7.0)
            module.running_var.fill_(9.0)
            module.num_batches_tracked.fill_(5)
    before = {name: value.clone() for name, value in model.named_parameters()}
    expected = slow_statistics(model, batches)
    reestimate(model, batches)
    found = dict(model.named_buffers())
    assert len(expected) == 8
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@torch.no_grad()
def test_blocks_behind_the_last_are_not_computed_and_all_modes_come_back():
    model = noisy()
    model.blocks[1].register_forward_pre_hook(lambda *_: pytest.fail("block 2 was computed"))
    model.train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    reestimate(model, [torch.randn(4, 1, 8, 8)], last=1)
    assert [module.training for module in model.modules()] == modes


def test_batches_are_whole_and_mix_the_classes():
    splits = Splits.of(Digits(batch_size=500))
    batches = list(splits.shuffled(torch.device("cpu")))
    assert [len(batch.labels) for batch in batches] == [500, 500]
    assert batches[0].images.shape == (500, 1, 8, 8)
    assert not torch.equal(batches[0].labels, splits.train.labels[:500])
    assert [len(batch.labels) for batch in Splits.of(Digits(batch_size=2000)).shuffled(torch.device("cpu"))] == [1293]


def test_the_network_is_probed_with_its_own_statistics_and_without_noise(copied):
    checkpoint = (copied / "checkpoints" / "last.ckpt").read_bytes()
    main(["probe", f"--checkpoint={copied}", "--epochs=2", "--k=5", "--reestimate_batch_norm=true", "--blocks=[2]"])
    metrics = summary(copied)["metrics"]
    own, clean = (metrics[f"{network}effective_rank/block2/gap"] for network in ("", "reestimated/"))
    assert own != clean
    assert {"reestimated/probe_lin2/block2/gap/top1", "reestimated/knn_k5_t0.1/block2/gap/top1"} <= set(metrics)
    assert (copied / "checkpoints" / "last.ckpt").read_bytes() == checkpoint
    assert json.loads((copied / "summary.json").read_text())["metrics"] == metrics


def test_a_network_without_batch_norm_has_no_statistics():
    model = Backprop(partial(MLP, hidden=(8,), batch_norm=False), (1, 8, 8), 10)
    with pytest.raises(RunError, match="has no BatchNorm"):
        reestimate(model, [])
