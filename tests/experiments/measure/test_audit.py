"""How local the methods are, as measured: all at their stated level; what leaks is caught."""

import inspect
import json
from datetime import timedelta
from functools import partial
from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
import torch.distributed as dist
from helpers import CONFIGS, fit, in_two_processes, summary
from jsonargparse import Namespace
from torch import nn
from torch.optim import SGD

import models.methods
from datamodules.digits import Digits
from experiments.cli import main
from experiments.local_learning_cli import LocalLearningCLI
from experiments.measure.audit import audit, level_of, locality
from experiments.measure.observed import observed, weight_layers
from models.local_learning import LocalLearning
from models.methods.closed_form import ClosedFormMLP
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.deep_supervision import DeepSupervision
from models.methods.overlapping_greedy import OverlappingGreedy
from models.networks.heads.classifiers import AuxHead, LinearHead
from models.networks.resnet import CifarResNet
from models.networks.vgg import VGG

STATED = {
    "aug_local/digits": "A",
    "asynchronous_greedy/digits": "A",
    "backprop/digits": "D",
    "blockwise_ssl/digits": "A",
    "channel_goodness/digits": "A",
    "decoupled_greedy/digits": "A",
    "deep_supervision/digits": "D",
    "equilibrium_propagation/digits": "D",  # one block: its layers settle together
    "forward_forward/digits": "B",  # hard negatives are drawn by what all layers predict
    "forward_forward_hybrids/digits": "A",
    "infopro/digits": "A",
    "layerwise/digits": "A",
    "loco/digits": "C(1)",
    "man/digits": "B",
    "neuron_groups/digits": "A",
    "overlapping_greedy/digits": "C(1)",
    "predsim/digits": "A",
    "self_contrastive/digits": "A",
    "self_defined_target/digits": "D",  # one block
    "semi_supervised_equilibrium/digits": "D",
    "semi_supervised_target/digits": "D",
    "slimclr/digits": "D",
    "unsupervised_forward_forward/digits": "A",
}
"""Config → level; docs/methods says the same."""

WITHOUT_LABELS = {
    "blockwise_ssl/digits",
    "equilibrium_propagation/digits",
    "loco/digits",
    "self_contrastive/digits",
    "self_defined_target/digits",
    "slimclr/digits",
    "unsupervised_forward_forward/digits",
}
READ_IMAGES = {"infopro/digits", "unsupervised_forward_forward/digits"}
READ_BATCHES = WITHOUT_LABELS - {"unsupervised_forward_forward/digits"} | {"predsim/digits", "infopro/digits"}


class Maker(LocalLearningCLI):
    """Builds what configs ask for, and trains nothing."""

    def __init__(self):
        super().__init__(["fit", f"--config={CONFIGS / 'backprop' / 'digits.yaml'}"])

    def fit(self, **arguments):
        pass

    def make(self, name):
        options = self._parser("fit").parse_args([f"--config={CONFIGS / f'{name}.yaml'}"])
        self.config = Namespace(subcommand="fit", fit=options)
        self.instantiate_classes()
        return self.model, self.datamodule


@pytest.fixture(scope="module")
def maker():
    return Maker()


@pytest.mark.parametrize("name", STATED)
def test_every_method_is_at_its_level(name, maker):
    model, data = maker.make(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    found = audit(model, data, steps=2 if STATED[name] == "A" and "asynchronous" not in name else 4)
    assert torch.equal(torch.rand(3), expected)  # a run that was audited draws the same numbers
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert found.level == STATED[name]
    assert bool(found.labels) == (name not in WITHOUT_LABELS)
    if found.level in ("A", "B"):
        assert bool(found.images) == (name in READ_IMAGES)
    if name != "forward_forward/digits":  # whose negatives are drawn: no two batches are comparable
        assert bool(found.batch) == (name in READ_BATCHES)
    assert bool(found.lock_step) == (found.level not in ("A", "D") or name == "deep_supervision/digits")
    blocks = range(model.num_blocks)  # else the audit would be blind
    assert all(found.influence[j][k] for k in blocks for j in range(k + 1)) or name == "self_contrastive/digits"


def test_all_methods_are_audited():
    files = [import_module(f"models.methods.{file.name}") for file in iter_modules(models.methods.__path__)]
    methods = {
        one
        for file in files
        for one in vars(file).values()
        if inspect.isclass(one) and issubclass(one, LocalLearning) and one.__module__ == file.__name__
    }
    names = {name.partition("/")[0].replace("_", "") for name in STATED}
    assert {one.__name__.lower() for one in methods} <= names | {"sparselearning"}


# -- what must be caught -------------------------------------------------------------------------------------------


def dgl(method=DecoupledGreedy, **options):
    torch.manual_seed(0)
    options = {"head": partial(AuxHead, hidden=8), "optimizer": partial(SGD, lr=0.05, momentum=0.9), **options}
    network = partial(VGG, plan=(6, "M", 8, 8, 8))
    return method(network=network, image_shape=(1, 8, 8), num_classes=10, num_blocks=4, **options)


class NothingDetached(DecoupledGreedy):
    """A slip of one line; the graphs are kept for it."""

    def backward_block(self, k, loss, retain_graph=False):
        super().backward_block(k, loss, retain_graph=True)

    def step_optimizer(self, k):
        """All at the end: weights that a graph still needs must not change in place."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        for optimizer in self.trainer.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        super().on_train_batch_end(outputs, batch, batch_idx)

    def hand_on(self, k, features):
        return features


class OneLeak(NothingDetached):
    """Between blocks 2 and 3 only."""

    def hand_on(self, k, features):
        return features if k == 1 else features.detach()


class CommonClip(DecoupledGreedy):
    """Gradients are clipped by a norm over all blocks, as Lightning and many scripts do."""

    def step_optimizer(self, k):
        """All at the end."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        nn.utils.clip_grad_norm_(self.parameters(), 0.01)
        for optimizer in self.trainer.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        super().on_train_batch_end(outputs, batch, batch_idx)


class Averaged(DecoupledGreedy):
    """Heads are pulled together after every batch, out of the loop's sight."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        super().on_train_batch_end(outputs, batch, batch_idx)
        with torch.no_grad():
            self.heads[1][-1].bias.add_(self.heads[2][-1].bias, alpha=1e-3)


class SharedRate(DecoupledGreedy):
    """A block's rate follows the loss of the last one."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        last = float(self._losses[3])
        super().on_train_batch_end(outputs, batch, batch_idx)
        for optimizer in self.trainer.optimizers:
            optimizer.param_groups[0]["lr"] = 0.01 * last


class ReadsImages(DecoupledGreedy):
    """The third block's loss weighs samples by how bright their images are."""

    def local_loss(self, k, features, batch):
        loss = super().local_loss(k, features, batch)
        return loss * batch.images.mean() if k == 2 else loss


@pytest.mark.parametrize(
    ("method", "level"),
    [(NothingDetached, "D"), (OneLeak, "C(1)"), (CommonClip, "B"), (Averaged, "B"), (SharedRate, "B")],
)
def test_what_leaks_is_caught(method, level):
    assert audit(dgl(method), Digits()).level == level


def test_where_a_leak_is_and_how_it_spreads():
    found = audit(dgl(OneLeak), Digits())
    assert found.reach == [[k == j or (k, j) == (2, 1) for j in range(4)] for k in range(4)]
    averaged = audit(dgl(Averaged), Digits())
    assert averaged.influence[2][:2] == [0, 2]  # what happens after a batch is seen after the next
    assert averaged.influence[3][:3] == [0, 0, 0]
    assert averaged.lock_step == ["block2"]


def test_what_a_block_reads():
    found = audit(dgl(ReadsImages), Digits())
    assert (found.level, found.images) == ("A", ["block3"])
    assert found.labels == found.parts
    clean = audit(dgl(), Digits())
    assert (clean.level, clean.images, clean.batch) == ("A", [], [])


def test_a_final_head_is_a_part():
    found = audit(dgl(final_head=LinearHead), Digits())
    assert found.parts == ["block1", "block2", "block3", "block4", "final"]
    assert found.level == "A"
    assert [row[:4] for row in found.influence[4:]] == [[0, 0, 0, 0]]


def test_frozen_blocks_do_not_make_it_blind():
    found = audit(dgl(frozen_blocks=1), Digits())
    assert (found.level, found.reach[0]) == ("A", [False] * 4)


# -- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reach", "influence", "blocks", "level"),
    [
        ([[1]], [[1]], 1, "D"),
        ([[1, 0], [0, 1]], [[1, 1], [0, 1]], 2, "A"),
        ([[1, 0], [0, 1]], [[1, 1], [2, 1]], 2, "B"),
        ([[1, 0], [1, 1]], [[1, 1], [1, 1]], 2, "D"),
        ([[1, 0, 0], [1, 1, 0], [0, 1, 1]], [[1] * 3] * 3, 3, "C(1)"),
        ([[1, 0, 0], [0, 1, 1], [0, 0, 1]], [[1] * 3] * 3, 3, "C(1)"),  # upwards, too
        ([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]], [[1] * 4] * 4, 4, "C(2)"),
    ],
)
def test_levels(reach, influence, blocks, level):
    assert level_of(reach, influence, blocks) == level


def test_layers_with_weights_on_the_longest_way():
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    deep = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3, bias=False), nn.LayerNorm(3))
    z = deep(x)
    assert weight_layers(z.sum().grad_fn) == 2
    assert weight_layers((z @ z.T).sum().grad_fn) == 2  # a product of features is no layer
    assert weight_layers((z + nn.Linear(3, 3)(x)).sum().grad_fn) == 2
    maps = nn.Conv2d(1, 2, 3)(torch.randn(1, 1, 5, 5))
    assert weight_layers(nn.BatchNorm2d(2)(maps).sum().grad_fn) == 1


@pytest.mark.parametrize(("num_blocks", "depth"), [(1, 32), (16, 5)])
def test_published_depth_of_gradients(num_blocks, depth):
    """ResNet-32 itself; layer by layer with the head 1c2f."""
    torch.manual_seed(0)
    network = partial(CifarResNet, widths=(8, 8, 8, 8))
    model = DecoupledGreedy(network, (1, 8, 8), 10, num_blocks)
    assert observed(model, Digits(), 1).depth == depth


@pytest.mark.parametrize(("method", "depth"), [(DecoupledGreedy, 2), (OverlappingGreedy, 3), (DeepSupervision, 5)])
def test_a_way_back_goes_on_where_another_one_ended(method, depth):
    """Four convolutions, a block each, and linear heads: one block of them, two, all."""
    network = partial(VGG, plan=(8, 8, "M", 16, 16))
    model = method(network=network, image_shape=(1, 8, 8), num_classes=10, num_blocks=4, head=LinearHead)
    assert observed(model, Digits(), 1).depth == depth


def test_command_and_summary_say_the_level(tmp_path, capsys):
    config = str(CONFIGS / "decoupled_greedy" / "digits.yaml")
    main(["audit", "--config", config, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["level"], found["gradient_depth"], found["lock_step"]) == ("A", 5, [])
    main(["audit", "--config", config])
    shown = capsys.readouterr().out
    assert "A: a block learns from what it is handed on" in shown
    assert "reads labels    all" in shown
    said = summary(fit(tmp_path))
    assert (said["level"], said["reads"], said["gradient_depth"]) == ("A", ["labels"], 4)  # one unit a block


def test_of_what_cannot_be_audited_nothing_is_claimed():
    class Broken(DecoupledGreedy):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("mine")

    assert locality(dgl(Broken), Digits()) == {"level": None, "why_no_level": "RuntimeError: mine"}
    assert locality(ClosedFormMLP((1, 8, 8), 10), Digits()) == {"level": None}


def audit_in_the_first(rank, folder, model, data):
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    if rank == 0:
        (folder / "level").write_text(audit(model, data, steps=1).level)
        assert dist.is_initialized()
    dist.barrier()


@pytest.mark.parametrize("gather_distributed", [False, True])
def test_one_of_two_processes_audits_by_itself(maker, tmp_path, gather_distributed):
    """Losses that gather from all processes, of ours or lightly's, would wait for the other one."""
    model, data = maker.make("blockwise_ssl/digits")
    for loss in (part for part in model.modules() if hasattr(part, "gather_distributed")):
        loss.gather_distributed = gather_distributed
    in_two_processes(audit_in_the_first, tmp_path, model, data)
    assert (tmp_path / "level").read_text() == "A"


def test_audit_of_a_method_without_backward_passes_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["audit", "--config", str(CONFIGS / "closed_form" / "digits.yaml")])
    assert "has none" in capsys.readouterr().err


def test_audited_runs_train_as_others(tmp_path, monkeypatch):
    from experiments import local_learning_cli

    first = fit(tmp_path, name="audited")
    monkeypatch.setattr(local_learning_cli, "locality", lambda *_: {})
    second = fit(tmp_path, name="plain")
    states = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (first, second)]
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
