"""predsim: the loss of a block, its limits, isolation, what predicts, schedules, cost."""

import copy
from functools import partial

import lightning.pytorch as L
import pytest
import torch
from reference.predsim import PublishedLayer
from torch import nn
from torch.nn import functional as F
from torch.optim import Adam
from training import assert_isolated, evaluated, saved_in_a_step, train

from datamodules.batch import Batch
from experiments.measure.cost import network_cost
from losses import similarity_matrix
from losses.errors import UsageError
from models.methods.predsim import PredSim, pooled_size
from models.networks.cut import Cut
from models.networks.mlp import MLP
from models.networks.resnet import CifarResNet
from models.networks.vgg import VGG, VGG8b

SHAPE, CLASSES = (1, 8, 8), 10
NETWORKS = {
    "vgg": partial(VGG, plan=(8, 8, "M", 16), hidden=(12,), negative_slope=0.01),
    # Fewer than 8 channels behind a stride crash in the kernels of torch 2.14 on some processors.
    "resnet": partial(CifarResNet, depth=8, widths=(8, 8, 16, 16)),
    "mlp": partial(MLP, hidden=(12, 12, 12, 12), negative_slope=0.01),
}


def build(network="vgg", num_blocks=4, **arguments):
    torch.manual_seed(0)
    arguments = {"optimizer": partial(Adam, lr=2e-3), "cut": Cut(by="units"), **arguments}
    return PredSim(NETWORKS[network], SHAPE, CLASSES, num_blocks, **arguments)


def draw(size=16):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, *SHAPE, generator=generator)
    return Batch(images, torch.randint(CLASSES, (size,), generator=generator))


def shake(model):
    """Zero weights hide what a prediction's gradient does to the features."""
    for parameter in model.heads.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


# -- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.99, 1.0])
def test_loss_and_gradient_are_the_weighted_sum_of_the_papers(network, beta):
    model, batch = shake(build(network, beta=beta)).double(), draw()
    features = model.blocks[0](batch.images.double()).detach().requires_grad_()
    loss = model.local_loss(0, features, batch)
    head, expected = model.heads[0], 0
    if beta < 1:
        logits = head["prediction"][-1](features.flatten(1))
        expected = expected + (1 - beta) * F.cross_entropy(logits, batch.labels)
    if beta > 0:
        layer, maps = head["similarity"], features.dim() == 4
        z = F.conv2d(features, layer[0].weight, padding=1) if maps else features @ layer.weight.T
        targets = similarity_matrix(torch.eye(CLASSES, dtype=torch.float64)[batch.labels])
        expected = expected + beta * (similarity_matrix(z) - targets).square().mean()
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(one, [features, *head.parameters()]) for one in (loss, expected))
    torch.testing.assert_close(ours, theirs)
    assert ours[0].abs().max() > 0


def published(model, pools):
    """Layers of the published code with the weights of a model, and biases before BatchNorm."""
    layers = []
    for block, head, pool in zip(model.blocks, model.heads, pools, strict=False):
        encoder, norm = [layer for layer in block.modules() if list(layer.parameters(recurse=False))]
        comparison = next(layer for layer in head["similarity"].modules() if isinstance(layer, nn.Conv2d | nn.Linear))
        parts = [copy.deepcopy(part) for part in (encoder, norm, comparison, head["prediction"][-1])]
        parts[0].bias = nn.Parameter(torch.linspace(-1, 1, len(encoder.weight), dtype=torch.float64))
        layers.append(PublishedLayer(*parts, pool, model.beta))
    return layers


def test_steps_are_those_of_the_published_code():
    """Where no pooling lies between a layer and its losses. BatchNorm takes the biases out, Adam a loss's weight."""
    torch.manual_seed(0)
    network = partial(VGG, plan=(8, 16), hidden=(12,), negative_slope=0.01)
    model = PredSim(network, SHAPE, CLASSES, 3, Cut(by="units"), beta=0.9, prediction_inputs=300).double()
    layers, classifier = published(model, [(2, 1), (2, 2), None]), copy.deepcopy(model.heads[-1])
    before, final = copy.deepcopy(model.blocks), Adam(classifier.parameters(), lr=5e-4)
    optimizers = [Adam(model.block_parameters(k), lr=5e-4) for k in range(4)]

    def update(k, loss):
        loss.backward()
        optimizers[k].step()
        optimizers[k].zero_grad()

    model.update_block = update
    images, labels = draw().images.double(), draw().labels
    for _ in range(4):
        model.training_step(Batch(images, labels), 0)
        x = images
        for layer in layers:
            x = layer.step(x, labels, CLASSES)
        ((1 - 0.9) * F.cross_entropy(classifier(x), labels)).backward()
        final.step()
        final.zero_grad()
    for block, head, old, layer in zip(model.blocks, model.heads, before, layers, strict=False):
        ours = [*block.parameters(), *head["similarity"].parameters(), *head["prediction"].parameters()]
        theirs = [layer.encoder.weight, *layer.norm.parameters()]
        theirs += [*layer.comparison.parameters(), *layer.prediction.parameters()]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        moved = [(one - other).abs().max() for one, other in zip(block.parameters(), old.parameters(), strict=True)]
        assert min(moved) > 1e-3
    torch.testing.assert_close(model.heads[-1].state_dict(), classifier.state_dict(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_predictions_start_at_zero_weights(network):
    model = build(network)
    predictions = [*(head["prediction"] for head in model.heads[:-1]), model.heads[-1]]
    for head in predictions:
        (linear,) = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
        assert not linear.weight.any()
        assert linear.bias.any()
    assert all(weight.std() > 0 for head in model.heads[:-1] for weight in head["similarity"].parameters())


@pytest.mark.parametrize(
    ("shape", "inputs", "expected"),
    [
        ((128, 32, 32), 4096, (4, 8)),
        ((512, 2, 2), 2048, (2, 2)),
        ((128, 28, 28), 1024, (2, 4)),  # 28 → 14 → 7 → 4 → 2 rows, 28 → 14 → 7 → 4 columns
        ((10, 3, 5), 10, (1, 1)),
        ((64, 4, 4), 10, (1, 1)),
        ((1024,), 10, ()),
    ],
)
def test_maps_are_pooled_as_in_the_published_code(shape, inputs, expected):
    assert pooled_size(shape, inputs) == expected


def test_published_cut_of_vgg8b():
    """Seven hidden layers, each with a block; predictions of at most 2048 inputs read 2048 or, at last, 1024."""
    with torch.device("meta"):
        model = PredSim(VGG8b, (3, 32, 32), 10, 7, Cut(by="units"), prediction_inputs=2048)
    assert [head["prediction"][-1].in_features for head in model.heads[:-1]] == [2048] * 6 + [1024]
    assert [next(head["similarity"].parameters()).shape[0] for head in model.heads[:-1]] == [
        *(128, 256, 256, 512, 512, 512),
        1024,
    ]


# -- isolation, memory, schedules -------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("beta", [0.0, 0.99, 1.0])
def test_loss_of_a_block_reaches_that_block_and_no_other(network, beta):
    assert_isolated(shake(build(network, num_blocks=3, beta=beta, dropout=0.2)), draw())


def test_cost_counts_what_a_block_and_its_head_keep():
    model = build(num_blocks=2).train()
    peak, left = saved_in_a_step(model, draw(32))
    cost = network_cost(model, 32)
    assert left == [0, 0, 0]
    vectors = 32 * 8 * 4  # of the larger block: what the cosines are made of
    assert cost.peak_activation_bytes < peak < cost.peak_activation_bytes + 8 * (vectors + 32 * 32 * 4)
    assert len(cost.nodes) == 2
    assert cost.final_head[0] == sum(p.numel() for p in model.heads[-1].parameters())
    assert cost.parameters == sum(p.numel() for p in model.parameters())


class OneMoves(L.Callback):
    def on_train_epoch_start(self, trainer, model):
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def on_train_epoch_end(self, trainer, model):
        moved = {n.split(".")[1] for n, t in model.state_dict().items() if not torch.equal(t, self.state[n])}
        assert moved == {str(trainer.current_epoch)}


def test_blocks_and_the_classifier_may_learn_one_after_the_other(tmp_path):
    model = build(epochs_per_block=1, dropout=0.1)
    trainer = train(model, tmp_path, max_epochs=5, callbacks=[OneMoves()])
    assert len(trainer.optimizers) == 5


def test_dropout_is_on_what_is_handed_on_whole_channels_and_in_training_only():
    model = build(dropout=0.5).train()
    maps, vectors = torch.ones(32, 8, 4, 4, requires_grad=True), torch.ones(64, 12)
    handed = model.hand_on(0, maps)
    assert not handed.requires_grad
    channels = handed.flatten(2)
    assert set(channels.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(channels.amin(2), channels.amax(2))
    assert set(model.hand_on(3, vectors).unique().tolist()) == {0.0, 2.0}
    assert torch.equal(model.eval().hand_on(0, maps), maps)


# -- predictions ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "names"), [(0.99, ["block1", "block2", "block3", "block4", "final"]), (1, ["final"])])
def test_blocks_with_a_prediction_predict_and_the_classifier_is_the_model(beta, names):
    model, batch = shake(build(beta=beta)).eval(), draw()
    logits, figures = model.block_logits(batch.images), evaluated(model, batch)
    assert list(logits) == names
    assert torch.equal(logits["final"], model(batch.images))
    assert figures["top1"] == figures["final/top1"]
    assert ("ensemble/top1" in figures) == (len(names) > 1)


# -- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"beta": -0.1}, {"beta": 1.1}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_shares_outside_their_range_are_refused(wrong):
    with pytest.raises(UsageError, match=f"from 0 to 1.*{next(iter(wrong.values()))}"):
        build(**wrong)


def test_a_batch_of_one_image_is_refused():
    model = build("resnet")
    with pytest.raises(UsageError, match="batch has only one"):
        model.on_train_batch_start(draw(1), 0)
