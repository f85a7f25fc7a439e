"""Self-defined targets: the published loop, homeostasis, isolation, no labels, resume."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from reference.self_defined_target import SlowTargets
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LinearLR
from training import Recorder, assert_equal_weights, assert_isolated, train

from datamodules.augment import Augment
from datamodules.batch import Batch
from datamodules.digits import Digits
from experiments.measure.workbench import plain_steps
from experiments.probing.association import associate
from experiments.probing.features import Splits, block_reader
from experiments.studies.plain_self_defined_target import PlainSelfDefinedTarget
from losses.errors import UsageError
from losses.winners import WinnerTakeAll
from models.methods.self_defined_target import SelfDefinedTarget
from models.networks.mlp import MLP
from models.networks.vgg import VGG
from models.parts.optimizers import LayerAdam, LayerSGD

pixels = partial(MLP, hidden=[], input_dropout=0.1)
digits = partial(Digits, batch_size=16, mean=[0.0], std=[1.0])


def made(network=pixels, **options):
    torch.manual_seed(0)
    rule = options.pop("target", {"winners": 2, "rate": 0.4, "dropout": 0.2})
    options = {"outputs": 200, "init_gain": 0.5, "optimizer": partial(SGD, lr=2.0), **options}
    return SelfDefinedTarget(network, (1, 8, 8), 10, target=partial(WinnerTakeAll, **rule), **options)


def test_one_block_learns_as_the_published_loop(tmp_path):
    """Two epochs of 64-30-20 on the same batches, in plain Python, with the same random masks."""
    network = partial(MLP, hidden=[30], batch_norm=False)
    model = made(network, outputs=20, optimizer=partial(LayerSGD, rates=[0.5, 2.0]))
    first, last = model.blocks[0].fc1[1], model.heads[0][1]
    weights = [p.detach().clone().requires_grad_() for p in (*first.parameters(), *last.parameters())]
    recorder, masks = Recorder(), []
    mask = WinnerTakeAll.mask

    def recorded(self, outputs):
        masks.append(mask(self, outputs))
        return masks[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WinnerTakeAll, "mask", recorded)
        train(model, tmp_path, digits(), [recorder], limit_train_batches=3)
    for step, (batch, keep) in enumerate(zip(recorder.batches, masks, strict=True)):
        if step in (0, 3):
            rule = SlowTargets(20, winners=2, rate=0.4, dropout=0.2)
        w1, b1, w2, b2 = weights
        y = keep * F.linear(F.linear(batch.images.flatten(1), w1, b1).relu(), w2, b2).clamp(0, 1)
        gradients = torch.autograd.grad((y - rule(y.detach(), keep)).square().mean(), weights)
        with torch.no_grad():
            for weight, gradient, rate in zip(weights, gradients, (0.5, 0.5, 2.0, 2.0), strict=True):
                weight -= rate * gradient
    assert len(masks) == 6
    for ours, theirs in zip((*first.parameters(), *last.parameters()), weights, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert last.weight.grad is None


def associated(model):
    """Test accuracy of direct association."""
    splits = Splits.of(digits())
    read = partial(splits.read, device=model.device, compute=block_reader(model, [1]))
    known, test = read([splits.train]), read([splits.test])
    return associate(known, test, 10)["block1/outputs/top1"]


@pytest.mark.parametrize(
    ("rate", "recognised", "never"), [(0.0, (0.0, 0.4), (0.2, 1.0)), (0.4, (0.75, 1.0), (0.0, 0.1))]
)
def test_homeostasis_has_every_output_win_and_stand_for_something(rate, recognised, never, tmp_path):
    model = made(target={"winners": 2, "rate": rate, "dropout": 0.2}, scheduler=partial(LinearLR, end_factor=0.1))
    trainer = train(model, tmp_path, digits(), max_epochs=15, limit_train_batches=1.0, limit_val_batches=0)
    assert never[0] <= trainer.callback_metrics["train/block1/never_won"] <= never[1]
    assert recognised[0] <= associated(model) <= recognised[1]
    assert (trainer.callback_metrics["train/block1/win_entropy"] > 0.9) == (rate > 0)


def test_blocks_are_isolated(tmp_path):
    model = made(partial(VGG, plan=(8, 8, "M", 16)), num_blocks=3, outputs=20)
    assert_isolated(model, next(iter(ready(digits()))))


def ready(data):
    data.prepare_data()
    data.setup("fit")
    return (data.evaluation_batch(batch) for batch in data.train_dataloader())


def test_labels_reach_no_weight(tmp_path):
    class Mislabelled(Digits):
        def evaluation_batch(self, batch):
            return super().evaluation_batch(batch._replace(labels=9 - batch.labels))

        def training_batch(self, batch):
            return super().training_batch(batch._replace(labels=9 - batch.labels))

    one, other = made(), made()
    train(one, tmp_path, digits())
    train(other, tmp_path, Mislabelled(batch_size=16, mean=[0.0], std=[1.0]))
    assert_equal_weights(one, other)


def test_a_run_resumed_within_an_epoch_goes_on_with_its_thresholds(tmp_path):
    def run(resume=None):
        model = made(num_blocks=1)
        saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=6)
        options = {"callbacks": [saved], "enable_checkpointing": True, "limit_train_batches": 1.0}
        data = Digits(batch_size=300, mean=[0.0], std=[1.0], augment=Augment(pad=1))
        train(model, tmp_path, data, resume=resume, **options)
        return model

    whole = run()
    assert whole.target(0).wins.sum() == 2 * 1293
    assert_equal_weights(whole, run(tmp_path / "step=6.ckpt"))


def test_drawn_weights_have_the_gain():
    layer = made(outputs=500).heads[0][1]
    assert layer.weight.abs().max().item() == pytest.approx(0.5 * (6 / 564) ** 0.5, rel=0.01)
    assert not layer.bias.any()
    assert made(outputs=500, init_gain=None).heads[0][1].bias.any()


def test_more_winners_than_outputs_are_refused():
    with pytest.raises(UsageError, match="6 of 4 outputs cannot win: choose winners between 1 and 4"):
        made(outputs=4, target={"winners": 6})


@pytest.mark.parametrize("optimizer", [LayerSGD, LayerAdam])
def test_layers_have_rates_of_their_own(optimizer):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(3, 4, bias=False), nn.Linear(4, 2))
    groups = optimizer([*network.parameters()], rates=[1.0, 2.0, 3.0]).param_groups
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(2, 1.0), (1, 2.0), (2, 3.0)]
    with pytest.raises(ValueError, match="rates of all 3 layers"):
        optimizer([*network.parameters()], rates=[1.0, 2.0])


def test_the_plain_loop_that_speed_is_compared_with_does_the_same_work():
    images, network = torch.rand(4, 16, 1, 8, 8), partial(MLP, hidden=[], input_dropout=0.3)
    model = made(network, outputs=50, init_gain=None, target={"winners": 6, "rate": 0.4, "dropout": 0.2})
    layer = nn.Linear(64, 50)
    layer.load_state_dict(model.heads[0][1].state_dict())
    plain = PlainSelfDefinedTarget(layer, partial(SGD, lr=2.0))
    for batch in images:
        torch.manual_seed(1)
        plain.step(batch)
        torch.manual_seed(1)
        next(plain_steps(model, Batch(batch, torch.zeros(16, dtype=torch.int64))))
    torch.testing.assert_close(model.heads[0][1].weight, layer.weight)
    torch.testing.assert_close(model.target(0).threshold, plain.threshold)
    assert plain.threshold.abs().max() > 0.01
