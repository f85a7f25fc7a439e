"""Few labels by equilibrium propagation: the published update by hand, backpropagation as its limit, resume."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F
from torch.optim import SGD, Adam
from training import assert_equal_weights, train

from datamodules.batch import Batch
from datamodules.digits import Digits
from losses.errors import NetworkError, UsageError
from losses.outputs import CrossEntropy
from models.methods.semi_supervised_equilibrium import SemiSupervisedEquilibrium
from models.networks.heads.classifiers import LinearHead
from models.networks.mlp import MLP
from models.parts.settling import Settling, drawn_masks

few = partial(Digits, batch_size=64, labels=40, labelled_batch_size=10, mean=[0.0], std=[1.0])


def layers(*hidden, **options):
    return partial(MLP, hidden=[*hidden], batch_norm=False, clamped=True, **options)


def made(network, *, symmetric=False, rate=0.0, pretraining_epochs=2, **phases):
    torch.manual_seed(0)
    nudging = "symmetric" if symmetric else "random_sign"
    settling = Settling(**{"beta": 0.45, "nudging": nudging, **phases})
    turns = {"pretraining_epochs": pretraining_epochs, "pretraining_optimizer": partial(Adam, lr=0.02), "rate": rate}
    options = {"settling": settling, "optimizer": partial(SGD, lr=0.1), **turns}
    return SemiSupervisedEquilibrium(network, (1, 8, 8), 10, **options)


def interior(model):
    """Weights and biases for which no state is clamped."""
    for layer in (*model.layers, model.heads[0]):
        layer.weight.data.uniform_(-0.05, 0.05)
    for layer in model.layers:
        layer.bias.data.fill_(0.5)
    return model.double()


def gradients(model, x, labels):
    model.local_loss(0, model.block_output(0, x), Batch(x, labels)).backward()
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize("labelled", [True, False])
def test_the_update_is_the_published_one(labelled, monkeypatch):
    """Of one layer whose states are clamped and masked, by formulas: h learns from both phases, W0 from the nudged."""
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(1))  # the sign is −
    model = made(layers(12, dropout=0.5, input_dropout=0.3), rate=0.3, free_steps=30, nudged_steps=4).double()
    model.pretraining_epochs = 2 if labelled else 0
    with torch.no_grad():
        model.layers[0].weight *= 8  # some states are 0 and some are 1
    x, labels = torch.rand(5, 1, 8, 8).double(), torch.tensor([3, 1, 4, 1, 5])
    model.targets[0].threshold += torch.linspace(0, 1, 10)
    threshold = model.targets[0].threshold.clone()
    torch.manual_seed(7)
    found = gradients(model, x, labels)
    torch.manual_seed(7)
    pixels, mask = drawn_masks((model.blocks[0], model.heads[0]), x.flatten(1))
    (w, b), (w0, b0) = ((layer.weight.detach(), layer.bias.detach()) for layer in (model.layers[0], model.heads[0]))
    v, h, beta = x.flatten(1) * pixels, torch.zeros(5, 12).double(), -0.45
    for _ in range(30):
        h = mask * (h + 0.2 * (v @ w.T + b - h)).clamp(0, 1)
    free, logits = h, h @ w0.T + b0
    assert (free == 0).any()
    assert (free == 1).any()
    t = F.one_hot(labels if labelled else (logits - threshold).argmax(1), 10).double()
    for _ in range(4):
        h = mask * (h + 0.2 * (v @ w.T + b + beta * (t - (h @ w0.T + b0).softmax(1)) @ w0 - h)).clamp(0, 1)
    error = t - (h @ w0.T + b0).softmax(1)
    published = [(h - free).T @ v / beta / 5, (h - free).mean(0) / beta, error.T @ h / 5, error.mean(0)]
    torch.testing.assert_close([-gradient for gradient in found], published)


@pytest.mark.parametrize("symmetric", [False, True])
def test_towards_small_nudges_the_update_is_that_of_backpropagation(symmetric):
    x, labels, distances = torch.rand(4, 1, 8, 8).double(), torch.tensor([3, 1, 4, 1]), []
    for beta in (0.1, 0.01):
        model = interior(made(layers(12, 16), symmetric=symmetric, free_steps=300, nudged_steps=300, beta=beta))
        logits = model.heads[0](model.settling.free(model.layers, x.flatten(1))[-1])
        theirs = torch.autograd.grad(F.cross_entropy(logits, labels), [*model.parameters()])
        pairs = zip(gradients(model, x, labels), theirs, strict=True)
        distances.append(max(((a - b).norm() / b.norm()).item() for a, b in pairs))
    order = 100 if symmetric else 10  # an error of β² in place of β
    assert distances[0] / distances[1] == pytest.approx(order, rel=0.1)
    assert distances[1] < 0.1 / order


def test_the_loss_is_that_of_the_free_states_and_so_is_the_prediction():
    model, x, labels = (
        interior(made(layers(12, 16), free_steps=300)),
        torch.rand(4, 1, 8, 8),
        torch.tensor([3, 1, 4, 1]),
    )
    loss = model.local_loss(0, model.block_output(0, x.double()), Batch(x.double(), labels))
    logits = model(x.double())
    s1, s2 = model.settling.free(model.layers, x.double().flatten(1))
    torch.testing.assert_close(s1, model.layers[0](x.double().flatten(1)) + s2 @ model.layers[1].weight)
    torch.testing.assert_close(logits, model.heads[0](s2))
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


def test_labels_and_winners_are_learned_and_a_resumed_run_the_same(tmp_path):
    """Three turns of each kind, stopped within one over images without labels."""

    def run(resume=None, **options):
        model = made(layers(30, dropout=0.5), rate=0.1)
        model.output_loss = CrossEntropy(smoothing=0.3)
        saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=15, save_weights_only=False)
        options = {"callbacks": [saved], "enable_checkpointing": True, "limit_train_batches": 1.0, "max_epochs": 8}
        return model, train(model, tmp_path, few(), resume=resume, **options)

    model, trainer = run()
    assert_equal_weights(model, run(tmp_path / "step=45.ckpt")[0])
    assert trainer.callback_metrics["val/top1"] > 0.2  # of chance 0.1
    assert model.targets[0].wins.sum() == 0  # of the last pass, over images with labels


def test_what_cannot_settle_is_refused():
    with pytest.raises(NetworkError, match="this network has a ReLU"):
        made(partial(MLP, hidden=[8], batch_norm=False))
    with pytest.raises(NetworkError, match="no layer whose states could settle"):
        made(layers())
    with pytest.raises(UsageError, match="one block with one classifier"):
        SemiSupervisedEquilibrium(layers(8, 8), (1, 8, 8), 10, num_blocks=2, head=LinearHead)
