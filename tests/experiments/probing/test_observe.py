"""``observe``: the hidden layers of a run beside those of another."""

import json
import math
import shutil
from functools import partial

import pytest
import torch
from helpers import CONFIGS, fault, fit, summary
from PIL import Image
from sklearn.neighbors import NearestCentroid
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from datamodules.digits import Digits
from experiments.cli import main
from experiments.probing.features import Features, Splits, evaluating
from experiments.probing.hidden_layers import flat, layer_metrics, layers_of, pooled_2x2, reader, redundancy
from experiments.probing.observe_pictures import _borders, _legend, _position
from experiments.probing.observe_results import table_of
from losses import effective_rank, separation_fuzziness
from models.methods.decoupled_greedy import DecoupledGreedy
from models.methods.neuron_groups import NeuronGroups
from models.networks.heads.classifiers import AuxHead
from models.networks.vgg import VGG

TINY = ("--model.network.plan=[8,8,M,16,16]", "--trainer.limit_train_batches=4", "--trainer.enable_progress_bar=false")
ACCURACIES = {f"{judge}_{part}" for judge in ("probe_lin2", "ncm") for part in ("train", "test", "gap")}
METRICS = ACCURACIES | {f"{metric}_{split}" for metric in ("fuzziness", "rank") for split in ("train", "test")}
COMPARED = {"cka_train", "cka_test", "collapse_test"}
UNITS = [f"block{k}/conv{k}" for k in range(1, 5)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run end to end of the network of the finished one."""
    return fit(tmp_path_factory.mktemp("runs"), *TINY, name="whole", config=CONFIGS / "backprop" / "digits.yaml")


@pytest.fixture
def undrawn(monkeypatch):
    """Where the picture is not what is tested: a small one is quicker."""
    blank = Image.new("RGB", (8, 8))
    monkeypatch.setattr("experiments.probing.observe_results.draw_depth", lambda *args: blank.save(args[-1]))


def observe(run, *options):
    main(["observe", f"--checkpoint={run}", "--epochs=2", "--images=100", *options])
    return json.loads((run / "observations.json").read_text())


def small(method=DecoupledGreedy, **arguments):
    return method(partial(VGG, plan=(8, 8, "M", 16, 16)), (1, 8, 8), 10, num_blocks=2, **arguments)


# -- layers and their features ------------------------------------------------------------------------


def test_layers_are_the_units_of_all_blocks_or_the_ends_of_blocks():
    model = small()
    assert list(layers_of(model)) == ["block1/conv1", "block1/conv2", "block2/conv3", "block2/conv4"]
    assert list(layers_of(model, "block")) == ["block1", "block2"]
    images = torch.randn(5, 1, 8, 8)
    with torch.no_grad(), evaluating(model):
        every_unit, every_block = (reader(layers_of(model, every))(images) for every in ("unit", "block"))
        first = model.blocks[0](images)
        assert torch.equal(every_block["block1"], F.avg_pool2d(first, 2).flatten(1))
        assert torch.equal(every_unit["block1/conv2"], every_block["block1"])
        assert torch.equal(every_unit["block2/conv4"], pooled_2x2(model.blocks[1](first)))
    groups = small(NeuronGroups, num_groups=2, head=partial(AuxHead, hidden=8))
    assert list(layers_of(groups, "block")) == ["block1", "block2"]  # its final head has no units


def test_maps_are_averaged_over_a_2x2_grid_and_vectors_stay():
    maps = torch.randn(3, 4, 6, 6)
    quarter = maps[:, :, 3:, :3].mean((2, 3))
    assert torch.allclose(pooled_2x2(maps).view(3, 4, 2, 2)[:, :, 1, 0], quarter, atol=1e-6)
    assert pooled_2x2(torch.randn(3, 4, 1, 1)).shape == (3, 4)
    assert torch.equal(pooled_2x2(maps[:, :, 0, 0]), maps[:, :, 0, 0])


def test_metrics_of_a_layer_are_those_of_its_features():
    labels = torch.arange(60) % 3
    train, val = (Features({"block1": torch.randn(60, 5) + labels[:, None]}, labels) for _ in "ab")
    metrics = layer_metrics(train, val, "val")["block1"]
    centroids = NearestCentroid().fit(train.kinds["block1"], labels)
    assert metrics["ncm_val"] == pytest.approx(centroids.score(val.kinds["block1"], labels))
    assert metrics["ncm_gap"] == metrics["ncm_train"] - metrics["ncm_val"]
    assert metrics["fuzziness_val"] == separation_fuzziness(val.kinds["block1"], labels)
    assert metrics["rank_train"] == effective_rank(train.kinds["block1"])


def test_heads_of_one_and_of_several_groups_are_judged_by_their_mean_probability_and_by_their_loss():
    logits = torch.tensor([[6.0, 0.0], [0.0, 6.0], [1.0, 0.0]])
    kinds = {"block1": logits, "block2": torch.stack([logits, -logits], dim=1)}  # p = 0.5 of two opposite heads
    found = redundancy(Features(kinds, torch.zeros(3, dtype=torch.int64)), lambda z, y: z.flatten(1)[:, 0] / 300)
    for head, confident in (("block1", 1 / 3), ("block2", 0)):
        assert found[head] == pytest.approx({"confident_train": confident, "small_loss_train": 2 / 3})


def test_what_cannot_be_computed_is_left_out_and_shown_as_a_dash():
    metrics = {"block1": {"fuzziness_train": math.nan, "ncm_train": 0.5}}
    assert flat(metrics) == {"observe/block1/ncm_train": 0.5}
    assert table_of(metrics, "probe_lin1") == (["", "NCM\ntrain", "D\ntrain"], [["block1", "50.00", "–"]])


def test_some_images_are_the_same_for_every_call_and_in_order():
    splits = Splits.of(Digits())
    one, other = splits.some(50), splits.some(50)
    assert [len(split) for split in (one.train, one.val, one.test)] == [50, 50, 50]
    assert torch.equal(one.train.labels, other.train.labels)
    assert len(splits.some(10_000).test) == len(splits.test)


def test_heads_are_drawn_at_the_ends_of_their_blocks_and_the_final_one_behind():
    layers = ["block1/conv1", "block1/conv2", "block10/conv3"]
    assert [_position(place, layers) for place in (*layers, "block1", "block10")] == [0, 1, 2, 1, 2]
    assert 2 < _position("final", layers) < 2.5
    assert _borders(layers) == [1.5]


def test_the_legend_says_what_every_mark_stands_for():
    layers = {"block1/conv1": {}, "block2/conv2": {}}
    both = _legend([("run", layers, {"block1": {}, "block2": {}}), ("whole (reference)", layers, {"final": {}})])
    assert [(line.get_label(), line.get_color(), line.get_linestyle(), line.get_marker()) for line in both] == [
        ("run", "tab:blue", "-", "None"),
        ("whole (reference)", "tab:orange", "-", "None"),
        ("test images", "black", "-", "None"),
        ("training images", "black", "--", "None"),
        ("head of a block", "black", "None", "o"),
        ("head of the whole network", "black", "None", "D"),
        ("blocks of run, numbered on top", "0.8", "-", "None"),
    ]
    alone = _legend([("whole", {"block1/conv1": {}}, {})])
    assert [line.get_label() for line in alone] == ["whole", "test images", "training images"]


# -- the command ----------------------------------------------------------------------------------------


def test_metrics_go_to_file_picture_tensorboard_and_screen(copied, whole, capsys):
    before = {file.name: file.read_bytes() for file in (copied / "checkpoints").iterdir()}
    found = observe(copied, f"--reference={whole}")
    assert found["layers"] == UNITS
    assert found["images"] == {"train": 100, "val": 100, "test": 100}
    assert found["reference"]["run"] == "whole"
    heads = {f"observe/block{k}/{share}_train" for k in range(1, 5) for share in ("confident", "small_loss")}
    ours = {f"observe/{unit}/{metric}" for unit in UNITS for metric in METRICS | COMPARED} | heads
    theirs = {f"reference/observe/{unit}/{metric}" for unit in UNITS for metric in METRICS}
    theirs |= {f"reference/observe/final/{share}_train" for share in ("confident", "small_loss")}
    assert set(found["metrics"]) == ours | theirs
    assert found["metrics"]["observe/block4/conv4/cka_test"] < 0.99  # beside another network, not itself
    assert {file.name: file.read_bytes() for file in (copied / "checkpoints").iterdir()} == before
    page = EventAccumulator(str(copied), size_guidance={"images": 0}).Reload()
    for name, value in found["metrics"].items():
        (event,) = page.Scalars(name)
        assert (event.step, event.value) == (8, pytest.approx(value))
    assert page.Images("observe/depth")
    assert "| block4/conv4 |" in page.Tensors("observe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert (copied / "observations.png").stat().st_size > 10_000
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [len(row) for row in rows if row and row[0] == UNITS[0]] == [14, 11]  # run; reference: not compared


def test_collapse_is_what_the_linear_probe_lacks_beside_the_reference(copied, whole, undrawn, capsys):
    found = observe(copied, f"--reference={whole}")["metrics"]
    for unit in UNITS:
        ours, theirs = (found[f"{who}observe/{unit}/probe_lin2_test"] for who in ("", "reference/"))
        assert found[f"observe/{unit}/collapse_test"] == pytest.approx(theirs - ours)
    collapse = [found[f"observe/{unit}/collapse_test"] for unit in UNITS]
    assert any(collapse)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [row[-1] for row in rows if row and row[0] in UNITS][: len(UNITS)]
    assert shown == [f"{100 * value:+.2f}" for value in collapse]


def test_what_can_be_recovered_behind_each_block_of_run_and_reference(copied, whole, undrawn, monkeypatch):
    """The reference's network is cut where the run's is; the same number of epochs behind every block of both."""
    seen = []

    def recovered(layers, network, data, trainer, *numbers):
        seen.append(numbers)
        return dict.fromkeys(layers, len(seen) / 4)

    monkeypatch.setattr("experiments.probing.observe.recoverable_top1", recovered)
    found = observe(copied, f"--reference={whole}", "--recover_epochs=3")
    assert found["recover_epochs"] == 3
    assert seen == [(3, 0)] * 2
    for unit in UNITS:
        assert found["metrics"][f"observe/{unit}/recoverable_test"] == 0.25
        assert found["metrics"][f"reference/observe/{unit}/recoverable_test"] == 0.5


def test_a_reference_is_observed_as_if_alone_even_unfinished_and_always_the_same(
    copied, whole, tmp_path, undrawn, capsys
):
    beside = observe(copied, f"--reference={whole}")["metrics"]
    folder = shutil.copytree(whole, tmp_path / "whole")
    (folder / "summary.json").unlink()
    printed = capsys.readouterr().out
    assert "last.ckpt, step 8\n" in printed
    found = observe(folder)
    printed = capsys.readouterr().out
    assert "last.ckpt, step 8: not finished, as it was after epoch 2\n" in printed
    assert "in place of" not in printed
    alone = found["metrics"]
    assert found["reference"] is None
    for k in range(1, 5):
        for metric in METRICS:
            ours, theirs = f"observe/block1/conv{k}/{metric}", f"reference/observe/block{k}/conv{k}/{metric}"
            assert alone[ours] == pytest.approx(beside[theirs], abs=1e-9)
    assert alone["observe/block1/confident_train"] == beside["reference/observe/final/confident_train"]


def test_judged_images_have_the_class_means_of_the_training_images():
    values = {"a": torch.tensor([[0.0], [1.0]])}
    train, swapped = Features(values, torch.tensor([0, 1])), Features(values, torch.tensor([1, 0]))
    found = layer_metrics(train, swapped, "val")["a"]
    assert [found[f"ncm_{name}"] for name in ("train", "val", "gap")] == [1, 0, 1]


def test_a_run_is_aligned_with_itself_in_place_of_what_was_observed_before(
    copied, finished, undrawn, capsys, monkeypatch
):
    seen = []
    counted = lambda train, *more: seen.append(len(train)) or layer_metrics(train, *more)  # noqa: E731
    monkeypatch.setattr("experiments.probing.observe.layer_metrics", counted)
    (copied / "observations.json").touch()
    metrics = observe(copied, f"--reference={finished}", "--every=block")["metrics"]
    for k in range(1, 5):
        assert metrics[f"observe/block{k}/cka_test"] == pytest.approx(1)
        assert metrics[f"observe/block{k}/ncm_test"] == metrics[f"reference/observe/block{k}/ncm_test"]
    assert seen == [100, 100]  # training images are judged without those of validation
    assert metrics["reference/observe/final/confident_train"] == metrics["observe/block4/confident_train"]
    printed = capsys.readouterr().out
    assert "observations.json and observations.png, in place of what was observed before\n" in printed


def test_blocks_of_groups_and_their_final_head_are_observed_and_probed(tmp_path, undrawn):
    options = ("--trainer.accelerator=cpu", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false")
    folder = fit(tmp_path, *options, "--trainer.max_epochs=1", config=CONFIGS / "neuron_groups" / "digits.yaml")
    metrics = observe(folder, "--every=block")["metrics"]
    assert "observe/block2/ncm_test" in metrics
    assert {name.split("/")[1] for name in metrics if "confident" in name} == {"block1", "block2", "final"}
    main(["probe", f"--checkpoint={folder}", "--epochs=1", "--k=5"])
    probed = {name for name in summary(folder)["metrics"] if name.startswith("probe_lin1") and name.endswith("top1")}
    assert probed == {"probe_lin1/block1/gap/top1", "probe_lin1/block2/gap/top1"}


# -- mistakes ---------------------------------------------------------------------------------------------


def test_mistakes_are_told_in_one_sentence(copied, whole, capsys, tmp_path):
    other = shutil.copytree(whole, tmp_path / "other")

    def said(option=f"--reference={other}"):
        return fault(capsys, "observe", f"--checkpoint={copied}", "--epochs=1", option)

    assert "There is no run" in said(f"--reference={tmp_path / 'nowhere'}")
    assert "too few to judge 10 classes" in said("--images=12")
    last = other / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    torch.save(saved | {"image_shape": (3, 32, 32)}, last)
    assert f"The reference {other} was trained on images of 3×32×32, the run to compare with has 1×8×8" in said()
    saved["state_dict"]["blocks.0.conv4.0.weight"] = torch.zeros(32, 16, 3, 3)
    torch.save(saved, last)
    assert "another network than VGG: conv4.0.weight is (32, 16, 3, 3) there" in said()
    (other / "summary.json").write_text(json.dumps(summary(other) | {"dataset": "MNIST"}))
    assert "trained on MNIST, the run on Digits" in said()
    (other / "summary.json").unlink()
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("datamodules.Digits", "datamodules.SVHN"))
    assert "trained on SVHN, the run on Digits" in said()
    assert not (copied / "observations.json").exists()
