"""``probe``: linear classifiers and kNN on the frozen features of every block of a run."""

import json
import re
from functools import partial

import pytest
import torch
import yaml
from helpers import CONFIGS, DIGITS, fault, summary
from reference.knn import slow_knn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from datamodules.augment import Augment
from datamodules.digits import Digits
from datamodules.images import MemoryImages
from datamodules.views.transforms import SimCLRViews, Views
from experiments.cli import main
from experiments.distributed.ddp import Launcher
from experiments.probing.features import AugmentedFeatures, Features, Splits, block_reader
from experiments.probing.knn import knn_classes
from experiments.probing.linear_probe import LinearProbe, fit_linear
from experiments.probing.probe import judge_linearly, probe_network
from experiments.probing.probe_results import Findings, record
from experiments.probing.protocol import Protocol
from experiments.probing.saved_network import Checkpoint
from models.methods.decoupled_greedy import DecoupledGreedy
from models.networks.vgg import VGG

CPU = torch.device("cpu")


def probe(run, *options):
    main(["probe", f"--checkpoint={run}", "--epochs=2", "--k=5", *options])


def blobs(count, seed=0):
    """Five features of three classes."""
    labels = torch.arange(count) % 3
    noise = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    return Features({"block1/gap": noise + labels[:, None]}, labels)


def linear_probe(*rates, **protocol):
    return LinearProbe({"block1/gap": 5}, {"block1/gap": rates}, 3, CPU, Protocol(**protocol))


# -- the linear probe -----------------------------------------------------------------------------


OPTIMIZERS = {
    "SGD": lambda head, rate, decay: SGD(head.parameters(), lr=rate, momentum=0.9, weight_decay=decay),
    "Adam": lambda head, rate, decay: Adam(head.parameters(), lr=rate, weight_decay=decay),
}


@pytest.mark.parametrize(
    ("optimizer", "decay", "dropout", "sigmoid"),
    [("SGD", 0.0, 0.0, False), ("SGD", 0.05, 0.0, False), ("SGD", 0.0, 0.4, False), ("Adam", 0.05, 0.2, True)],
)
def test_all_learning_rates_at_once_are_separate_heads(optimizer, decay, dropout, sigmoid):
    features, rates = blobs(100), (0.03, 0.1, 0.3, 1.0)
    how = {"weight_decay": decay, "optimizer": optimizer, "dropout": dropout, "sigmoid": sigmoid}
    joint = linear_probe(*rates, epochs=4, batch_size=32, **how).fit(features).heads["block1/gap"]
    for found, rate in zip(joint, rates, strict=True):
        generator = torch.Generator().manual_seed(0)
        head = nn.Linear(5, 3)
        nn.init.normal_(head.weight, std=0.01, generator=generator)
        nn.init.zeros_(head.bias)
        steps = OPTIMIZERS[optimizer](head, rate, decay)
        schedule = CosineAnnealingLR(steps, 4)
        for _ in range(4):
            for chosen in torch.randperm(100, generator=generator).split(32):
                x = features.kinds["block1/gap"][chosen]
                if dropout:
                    x = x * torch.empty_like(x).bernoulli_(1 - dropout, generator=generator) / (1 - dropout)
                z = head(x)
                steps.zero_grad()
                F.cross_entropy(torch.sigmoid(z) if sigmoid else z, features.labels[chosen]).backward()
                steps.step()
            schedule.step()
        torch.testing.assert_close(found.weight, head.weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.bias, head.bias, atol=1e-5, rtol=1e-4)


def test_a_learning_rate_that_diverges_harms_no_other():
    features = blobs(60)
    features.kinds["block1/gap"].mul_(1e4)
    both = (linear_probe(1e-6, rate, epochs=3, batch_size=16).fit(features) for rate in (1e-6, 1e38))
    (calm, _), (beside, diverged) = (probe.heads["block1/gap"] for probe in both)
    assert not diverged.weight.isfinite().all()
    assert torch.equal(beside.weight, calm.weight)


def test_an_image_counts_if_its_class_is_among_the_likeliest():
    probe = linear_probe(0.1, 0.2)
    with torch.no_grad():  # from likeliest to least: 2 1 0, 0 2 1
        for head, bias in zip(probe.heads["block1/gap"], ([0.0, 1.0, 2.0], [5.0, 3.0, 4.0]), strict=True):
            head.weight.zero_()
            head.bias.copy_(torch.tensor(bias))
    features = Features({"block1/gap": torch.zeros(10, 5)}, torch.tensor([0] * 5 + [1] * 3 + [2] * 2))
    shares = [probe.accuracy(features, top)["block1/gap"] for top in (1, 2, 3)]
    torch.testing.assert_close(torch.tensor(shares), torch.tensor([[0.2, 0.5], [0.5, 0.7], [1.0, 1.0]]))


def test_of_many_images_all_count():
    probe, features = linear_probe(0.1), blobs(9000)
    probe.fit(features[:60])
    right = probe.heads["block1/gap"][0](features.kinds["block1/gap"]).argmax(1) == features.labels
    assert probe.accuracy(features)["block1/gap"] == pytest.approx([right.float().mean().item()])


def test_the_best_epoch_on_test_images_is_any_the_first_too(monkeypatch):
    protocol, known = Protocol(3, [0.3], 20, best_on_test=True), blobs(30)
    for shares, best in (([0.9, 0.5, 0.6, 0.6], 0.9), ([0.1, 0.7, 0.6, 0.6], 0.7)):
        found = iter(shares)
        monkeypatch.setattr(LinearProbe, "accuracy", lambda *_, found=found: {"block1/gap": [next(found)]})
        _, judged = judge_linearly((known, known), known, known, 3, protocol, CPU)
        assert judged == {"block1/gap/lr": 0.3, "block1/gap/top1": 0.6, "block1/gap/top1_best_on_test": best}


def test_the_final_classifier_learns_from_held_out_images_too(monkeypatch):
    calls, training, accuracy = [], LinearProbe.training, LinearProbe.accuracy

    def noted(self, x):
        calls.append(("fit", len(x), self._protocol, self._generator.initial_seed()))
        return training(self, x)

    monkeypatch.setattr(LinearProbe, "training", noted)
    monkeypatch.setattr(LinearProbe, "accuracy", lambda self, x: calls.append(("judged", len(x))) or accuracy(self, x))
    known, protocol = blobs(90), Protocol(3, (1e-9, 0.3), batch_size=20, seed=4, weight_decay=0.1)
    epochs = []
    linear, rates = fit_linear(known[:-30], known, known[-30:], 3, protocol, CPU, epochs.append)
    assert calls == [("fit", 60, protocol, 4), ("judged", 30), ("fit", 90, protocol, 4)]
    assert rates == {"block1/gap": 0.3}
    assert epochs == [linear] * 3
    calls.clear()
    protocol = Protocol(3, [0.3], 20)
    _, rates = fit_linear(known[:-30], known, known[-30:], 3, protocol, CPU)
    assert calls == [("fit", 90, protocol, 0)]  # there is nothing to choose
    assert rates == {"block1/gap": 0.3}


@pytest.mark.parametrize("order", [(1e-9, 0.3), (0.3, 1e-9)])
def test_the_learning_rate_is_the_best_on_held_out_images_wherever_it_stands(order):
    """What held-out images teach is the opposite of what training images do: who learns most does worst on them."""
    known = blobs(120)
    val = Features(known[-60:].kinds, (known[-60:].labels + 1) % 3)
    tried = linear_probe(0.3, 1e-9, epochs=5, batch_size=20).fit(known[:-60])
    (on_training,), (on_val,) = (tried.accuracy(some).values() for some in (known[:-60], val))
    assert on_training[0] > on_training[1]
    assert on_val[0] < on_val[1]
    _, rates = fit_linear(known[:-60], known, val, 3, Protocol(5, order, 20), CPU)
    assert rates == {"block1/gap": 1e-9}


# -- kNN ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 60])
def test_knn_is_the_obvious_loop_in_one_part_or_in_several(k, monkeypatch):
    bank, queries = blobs(60, seed=2), blobs(40, seed=3)
    arguments = (bank.kinds["block1/gap"], bank.labels, queries.kinds["block1/gap"], k, 0.1)
    expected = slow_knn(*arguments)
    assert torch.equal(knn_classes(*arguments), expected)
    monkeypatch.setattr("experiments.probing.knn._CHUNK", 180)
    assert torch.equal(knn_classes(*arguments), expected)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8])
def test_ties_go_to_the_lower_class(k):
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    bank, labels = corners.repeat(3, 1), torch.tensor([2, 2, 0, 1, 1, 0, 2, 2, 0, 1, 1, 0])
    queries = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [3.0, 0.0], [0.0, -2.0]])
    assert torch.equal(knn_classes(bank, labels, queries, k, 0.1), slow_knn(bank, labels, queries, k, 0.1))


# -- features ---------------------------------------------------------------------------------------


def test_what_is_held_out_of_the_known_images_is_the_validation_split(monkeypatch):
    def stop(*arguments):
        raise StopIteration(arguments[:3])

    data, model = Digits(), DecoupledGreedy(partial(VGG, plan=(8, "M", 8)), (1, 8, 8), 10, 2)
    splits = Splits.of(data)
    monkeypatch.setattr("experiments.probing.probe.fit_linear", stop)
    with pytest.raises(StopIteration) as stopped:
        probe_network(model, splits, [1], Protocol(k=5), Findings())
    train, known, val = stopped.value.args[0]
    assert torch.equal(train.labels, splits.train.labels)
    assert torch.equal(val.labels, splits.val.labels)
    assert torch.equal(known.labels, torch.cat([train.labels, val.labels]))


def test_features_are_those_of_the_unaugmented_images_in_order_and_later_blocks_are_not_computed():
    model, data = DecoupledGreedy(partial(VGG, plan=(8, 8, "M", 16, 16)), (1, 8, 8), 10, 4), Digits(batch_size=50)
    model.blocks[2].register_forward_pre_hook(lambda *_: pytest.fail("block 3 was computed"))
    splits = Splits.of(data)
    features = splits.read([splits.train, splits.val], CPU, block_reader(model, [2]))
    assert set(features.kinds) == {"block2/gap"}
    assert torch.equal(features.labels, torch.cat([splits.train.labels, splits.val.labels]))
    raw = splits.val.__getitems__(torch.arange(5))
    second = model.blocks[1](model.blocks[0](data.normalised(raw.images)))
    torch.testing.assert_close(features.kinds["block2/gap"][-len(splits.val) :][:5], second.mean((2, 3)))


def test_augmented_features_are_new_in_each_epoch_and_a_function_of_the_seed():
    model, data = DecoupledGreedy(partial(VGG, plan=(8, "M", 8)), (1, 8, 8), 10, 2), Digits(augment=Augment(pad=1))
    splits = Splits.of(data)
    train, known = splits.augmented(CPU, block_reader(model, [2]))
    assert (len(train.images), len(known.images)) == (1293, 1437)

    def epochs(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(2):
            torch.rand(3)  # what is drawn elsewhere does not matter
            batches = list(known.epoch(500, generator))
            assert [len(batch) for batch in batches] == [500, 500, 437]
            yield (torch.cat([batch.kinds["block2/gap"] for batch in batches]), torch.cat([b.labels for b in batches]))

    (first, labels), (second, _) = epochs(1)
    (again, same), _ = epochs(1)
    assert torch.equal(first, again)
    assert torch.equal(labels, same)
    assert torch.equal(labels.sort().values, data.known_images.labels.sort().values)
    clean = splits.read([splits.train, splits.val], CPU, block_reader(model, [2])).kinds["block2/gap"]
    found = [(torch.cdist(clean, some).amin(dim=1) < 1e-6).float().mean() for some in (first, second)]
    assert max(found) < 0.3  # 1 in 9 is not shifted
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


class Noisy(MemoryImages):
    """Images that draw while they are loaded."""

    def __getitems__(self, indices):
        batch = super().__getitems__(indices)
        return batch._replace(images=batch.images ^ torch.randint(8, batch.images.shape, dtype=torch.uint8))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_batch_draws_depends_on_no_other(workers):
    images = Noisy(torch.zeros(10, 8, 8, 1, dtype=torch.uint8), torch.arange(10))
    data = Digits(augment=Augment(pad=1), num_workers=workers)
    examples = AugmentedFeatures(images, data, CPU, lambda x: {"pixels": x.flatten(1)})
    seeded = [(torch.arange(5), [1, 2]), (torch.arange(5, 10), [3, 4])]
    torch.manual_seed(5)
    (first, _), (second, _) = examples._made(seeded)
    torch.manual_seed(6)
    [(alone, labels)] = examples._made(seeded[1:])
    assert torch.equal(second["pixels"], alone["pixels"])
    assert torch.equal(labels, torch.arange(5, 10))
    torch.manual_seed(7)
    (again, _), _ = examples._made(seeded)
    assert torch.equal(first["pixels"], again["pixels"])
    assert first["pixels"].std() > 0


def test_a_run_that_validated_on_the_test_split_is_probed_without_it():
    splits = Splits.of(Digits(validate_on_test=True))
    assert (len(splits.val), len(splits.test)) == (144, 360)


def test_a_run_that_learned_from_views_is_probed_without_them():
    augmented = []
    for views in (None, Views(partial(SimCLRViews, blur=0, flip=0))):
        train, _ = Splits.of(Digits(augment=Augment(pad=1), views=views)).augmented(CPU, lambda x: {"x": x.flatten(1)})
        augmented.append(next(train.epoch(20, torch.Generator())).kinds["x"])
    assert torch.equal(*augmented)


# -- the command ------------------------------------------------------------------------------------


def test_one_process_probes_a_run_of_several(copied, monkeypatch):
    config = copied / "config.yaml"
    trained = yaml.safe_load(config.read_text())
    trained["trainer"] |= {"devices": 2, "num_nodes": 2, "strategy": "ddp"}
    config.write_text(yaml.safe_dump(trained))
    monkeypatch.setattr(Launcher, "launch", lambda *_: pytest.fail("processes were started"))
    probe(copied, "--blocks=[4]")
    assert "probe_lin2/block4/gap/top1" in summary(copied)["metrics"]


def test_a_run_whose_batches_grew_is_probed(copied):
    probe(copied, "--blocks=[4]", "--data.batch_sizes={1: 64}")
    assert "probe_lin2/block4/gap/top1" in summary(copied)["metrics"]


def test_metrics_go_to_summary_tensorboard_and_screen(copied, capsys):
    before, checkpoint = summary(copied), (copied / "checkpoints" / "last.ckpt").read_bytes()
    probe(copied)
    printed = capsys.readouterr().out
    assert re.search(r"features +network +linear", printed)
    assert "images/s through the frozen network" in printed
    after = summary(copied)
    added = {name: value for name, value in after["metrics"].items() if name not in before["metrics"]}
    shares = {f"{judge}/block{k}/gap/top1" for judge in ("probe_lin2", "knn_k5_t0.1") for k in range(1, 5)}
    rates = {f"probe_lin2/block{k}/gap/lr" for k in range(1, 5)}
    fifth = {f"probe_lin2/block{k}/gap/top5" for k in range(1, 5)}
    assert set(added) == shares | fifth | rates | {f"effective_rank/block{k}/gap" for k in range(1, 5)}
    assert all(added[name] > added[name.replace("top5", "top1")] for name in fifth)
    assert all(added[name] in (0.03, 0.1, 0.3, 1.0) for name in rates)
    assert all(360 * added[name] == pytest.approx(round(360 * added[name])) for name in shares)  # of the test images
    assert {**after, "metrics": before["metrics"]} == before
    assert before["metrics"].items() <= after["metrics"].items()
    assert (copied / "checkpoints" / "last.ckpt").read_bytes() == checkpoint
    page = EventAccumulator(str(copied)).Reload()
    for name, value in added.items():
        (event,) = page.Scalars(name)
        assert (event.step, event.value) == (8, pytest.approx(value))
    assert "| 4 | gap |" in page.Tensors("probe/text_summary")[0].tensor_proto.string_val[0].decode()


def test_random_and_supervised_controls_of_some_blocks(copied, capsys, monkeypatch):
    rates = []
    monkeypatch.setattr(
        "experiments.probing.supervised.SGD", lambda params, lr, **more: rates.append(lr) or SGD(params, lr, **more)
    )
    probe(copied, "--random=true", "--supervised_epochs=1", "--blocks=[4]")
    metrics = summary(copied)["metrics"]
    assert {name.split("/")[-3] for name in metrics if "probe_lin" in name or "knn" in name} == {"block4"}
    assert metrics["random/knn_k5_t0.1/block4/gap/top1"] != metrics["knn_k5_t0.1/block4/gap/top1"]
    assert "random/probe_lin2/block4/gap/top1" in metrics
    assert 0 < metrics["supervised/test/top1"] <= 1
    assert set(rates) == {0.1 * 64 / 128}
    printed = capsys.readouterr().out
    assert re.search(r" 4 +gap +trained .+\n +4 +gap +random ", printed)
    assert "supervised, end to end" in printed


def test_metrics_of_other_weights_or_of_an_unfinished_run_stay_out_of_the_summary(copied, capsys):
    before = summary(copied)
    probe(copied / "checkpoints" / "previous.ckpt")
    assert summary(copied) == before
    found = json.loads((copied / "probe.json").read_text())
    assert (found["checkpoint"], found["global_step"], found["dataset"]) == ("previous.ckpt", 4, "Digits")
    assert "not the final weights" in capsys.readouterr().out
    saved = Checkpoint(copied / "checkpoints" / "last.ckpt", {"epoch": 1, "global_step": 8, "state_dict": {}})
    record(Findings({"knn": 0.5}), saved, "other data")
    assert summary(copied) == before
    (copied / "summary.json").unlink()
    probe(copied)
    assert not (copied / "summary.json").exists()
    assert json.loads((copied / "probe.json").read_text())["global_step"] == 8


def test_the_published_protocol_by_its_names(copied, monkeypatch):
    accuracies, accuracy, learned_from, training = [], LinearProbe.accuracy, [], LinearProbe.training

    def noted(self, features, top=1):
        assert len(features) == 360  # the test images
        found = accuracy(self, features, top)
        accuracies.extend(found["block4/gap"] if top == 1 else [])
        return found

    monkeypatch.setattr(LinearProbe, "accuracy", noted)
    monkeypatch.setattr(LinearProbe, "training", lambda self, x, *_: learned_from.append(x) or training(self, x, *_))
    before = summary(copied)["metrics"]
    options = ["--augment=true", "--weight_decay=1e-6", "--best_on_test=true"]
    probe(copied, *options, "--blocks=[4]", "--learning_rates=[1.0]", "--epochs=3")
    metrics = {name: value for name, value in summary(copied)["metrics"].items() if name not in before}
    figures = {"top1", "top5", "lr", "top1_best_on_test"}
    judged = {f"probe_lin3_augmented/block4/gap/{figure}" for figure in figures}
    assert set(metrics) == judged | {"knn_k5_t0.1/block4/gap/top1", "effective_rank/block4/gap"}
    assert [(type(examples), len(examples.images)) for examples in learned_from] == [(AugmentedFeatures, 1437)]
    assert len(accuracies) == 4  # after each epoch, and in the end
    assert metrics["probe_lin3_augmented/block4/gap/top1_best_on_test"] == max(accuracies)
    assert metrics["probe_lin3_augmented/block4/gap/top1"] == accuracies[-1] == accuracies[2]


def test_the_imagenet_config_is_the_published_protocol():
    """Siddiqui et al. (2024): the options of their evaluation script, and the best epoch beside the last."""
    config = yaml.safe_load((CONFIGS / "probe" / "imagenet.yaml").read_text())
    published = {"epochs": 100, "learning_rates": [0.1], "batch_size": 256, "weight_decay": 1e-6, "augment": True}
    assert config == {**published, "best_on_test": True, "k": 200, "temperature": 0.1}


def test_help_needs_no_run(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["probe", "--help"])
    assert stop.value.code == 0
    assert "--supervised_epochs" in capsys.readouterr().out


# -- mistakes ---------------------------------------------------------------------------------------


def test_mistakes_are_told_in_one_sentence(copied, capsys, tmp_path):
    def said(*options):
        return fault(capsys, "probe", f"--checkpoint={copied}", *options)

    assert "has blocks [1, 2, 3, 4], not [3, 7]" in said("--blocks=[7,3]")
    assert "k is 5000, but only 1437 images" in said("--k=5000")
    assert "Nothing is random in the training images of Digits" in said("--augment=true", "--data.augment.pad=0")
    assert "no learning rate" in said("--learning_rates=[]")
    assert re.search("images of 1×8×8, .* 1×28×28", said("--data=datamodules.FashionMNIST"))
    assert "trains a model" in said(f"--config={DIGITS}")
    assert "another network" in said("--model.network.plan=[16,8,M,16,16]")
    last = copied / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    assert "is damaged" in said()
    last.unlink()
    assert "There is no checkpoint" in said()
    (copied / "config.yaml").unlink()
    assert "no run folder" in said()
    assert "There is no run" in fault(capsys, "probe", f"--checkpoint={tmp_path / 'nowhere'}")
    assert "probe needs a finished run: give --checkpoint RUN" in fault(capsys, "probe")
