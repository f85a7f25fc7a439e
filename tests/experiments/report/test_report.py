"""``report``."""

import csv
import json
import re
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from experiments.report.command import main
from experiments.report.pictures import _depth_line
from experiments.report.rows import group
from experiments.report.runs import find_runs, line_of
from experiments.run.errors import RunError


def finished(folder, name, settings=None, trainer=None, **changes):
    """A run folder with nothing but a summary, and a configuration if settings of the model are given."""
    summary = {
        "name": name,
        "method": "Backprop",
        "network": "VGG",
        "dataset": "Digits",
        "seed": 0,
        "num_blocks": 1,
        "batch_size": 64,
        "epochs": 2,
        "images_per_second": 1000.0,
        "peak_activation_bytes": 4 * 2**20,
        "metrics": {"test/top1": 0.9, "test/ensemble/top1": 0.9, "test/block1/top1": 0.9},
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "summary.json").write_text(json.dumps(summary | changes))
    if settings is not None:
        config = {"seed_everything": changes.get("seed", 0), "model": {"init_args": settings}, "trainer": trainer}
        (folder / name / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def runs(tmp_path):
    finished(tmp_path, "backprop")
    for seed, top1 in enumerate((0.80, 0.90)):
        metrics = {"test/top1": top1, "test/block1/top1": 0.5, "test/block2/top1": top1, "test/ensemble/top1": 0.81}
        changes = {"method": "DecoupledGreedy", "num_blocks": 2, "seed": seed, "metrics": metrics}
        finished(tmp_path, f"dgl{seed}", images_per_second=500.0, peak_activation_bytes=2**20, **changes)
    return tmp_path


def test_seeds_are_one_row_and_ratios_are_to_backprop(runs):
    backprop, dgl = group(find_runs([runs]))
    assert (backprop.first["method"], len(dgl.runs)) == ("Backprop", 2)
    assert dgl.mean["test/top1"] == pytest.approx(0.85)
    assert dgl.ratio["test/top1"] == pytest.approx(0.85 / 0.9)
    assert dgl.ratio["images_per_second"] == pytest.approx(0.5)
    assert dgl.ratio["peak_activation_bytes"] == pytest.approx(0.25)
    assert dgl.blocks() == pytest.approx([50.0, 85.0])


def test_report_writes_table_and_picture(runs, capsys):
    main([str(runs)])
    printed = capsys.readouterr().out
    assert "tensorboard --logdir" in printed
    assert re.search(r"DecoupledGreedy\s+2\s+2\s+50\.0 85\.0\s+85\.00 ± 7\.07", printed)
    assert "only the last by name counts" not in printed
    with (runs / "report.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["method"] for row in table] == ["Backprop", "DecoupledGreedy"]
    assert table[1]["test top-1, %"] == "85.00 ± 7.07"
    assert table[1]["each block, %"] == "50.0 85.0"
    assert table[1]["peak MiB"] == "1.0 (×0.25)"
    assert "| DecoupledGreedy | 2 |" in (runs / "report.md").read_text()
    assert (runs / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def grouped_runs(runs):
    macs = {"slowest_node_macs": 2e6, "inference_macs": 5e6, "ensemble_macs": 7e6}
    finished(runs, "backprop again", **(macs | {"slowest_node_macs": 8e6}), seed=1)
    for sharing in (True, False):
        metrics = {
            "test/top1": 0.8,
            "test/ensemble/top1": 0.82,
            "test/block2/top1": 0.79,
            "test/block2/group1/top1": 0.7,
        }
        changes = {"method": "NeuronGroups", "num_blocks": 2, "num_groups": 4, "metrics": metrics}
        settings = {"num_groups": 4, "sharing": sharing, "network": {"init_args": {"depth": 32}}}
        finished(runs, f"groups {sharing}", settings, **changes, **macs)
    return runs


def test_settings_and_groups_are_rows_of_their_own(grouped_runs):
    rows = group(find_runs([grouped_runs]))
    assert [(row.method, *row.nodes) for row in rows] == [
        ("Backprop", 1, 1),
        ("DecoupledGreedy", 2, 1),
        ("NeuronGroups (sharing False)", 2, 4),
        ("NeuronGroups (sharing True)", 2, 4),
    ]
    assert rows[3].ratio["slowest_node_macs"] == pytest.approx(0.25)


def test_only_seeds_are_averaged(tmp_path):
    for seed, rate in ((0, 0.1), (1, 0.1), (0, 0.2)):
        finished(tmp_path, f"{rate}-{seed}", {"optimizer": {"init_args": {"lr": rate}}}, seed=seed)
    assert [(row.method, len(row.runs)) for row in group(find_runs([tmp_path]))] == [
        ("Backprop (lr 0.1)", 2),
        ("Backprop (lr 0.2)", 1),
    ]


def callback(name, **arguments):
    """How ``config.yaml`` and summaries name a callback of ours."""
    return {"class_path": f"experiments.callbacks.{name}", "init_args": arguments}


def test_a_callback_that_changes_training_is_named_and_one_that_watches_is_not(tmp_path):
    watch, drop = callback("HiddenLayers", every_n_epochs=1), callback("InfoBatch", ratio=0.5, until=0.875)
    finished(tmp_path, "plain", {}, {"callbacks": [watch]}, callbacks=[])
    finished(tmp_path, "filtered", {}, {"callbacks": [watch, drop]}, callbacks=[drop])
    finished(tmp_path, "plain, seed 1", {}, {"callbacks": []}, seed=1, callbacks=[])
    rows = group(find_runs([tmp_path]))
    assert [(row.method, len(row.runs)) for row in rows] == [("Backprop", 2), ("Backprop (InfoBatch)", 1)]
    assert [row.base for row in rows] == [None, None]
    finished(tmp_path, "filtered more", {}, callbacks=[callback("InfoBatch", ratio=0.8, until=0.875)])
    assert sorted(row.method for row in group(find_runs([tmp_path]))) == [
        "Backprop",
        "Backprop (InfoBatch, ratio 0.5)",
        "Backprop (InfoBatch, ratio 0.8)",
    ]


def test_of_a_summary_that_does_not_tell_them_all_callbacks_count(tmp_path):
    finished(tmp_path, "plain", {}, {"callbacks": None})
    finished(tmp_path, "watched", {}, {"callbacks": callback("HiddenLayers", every_n_epochs=1)})  # one may stand alone
    finished(tmp_path, "filtered", {}, {"callbacks": [callback("InfoBatch", ratio=0.5)]})
    rows = group(find_runs([tmp_path]))
    assert [row.method for row in rows] == ["Backprop", "Backprop (HiddenLayers)", "Backprop (InfoBatch)"]


def test_a_class_says_nothing_of_what_is_inside_it(tmp_path):
    coder = {"class_path": "coders.Zlib", "init_args": {"level": 9}}
    hooks = {
        "half": {"class_path": "hooks.Half", "init_args": {"c": 0.5}},
        "none": {"class_path": "hooks.Uncompressed"},
        "coded": {"class_path": "hooks.EntropyCoded", "init_args": {"c": 1.0, "coder": coder}},
    }
    for name, hook in hooks.items():
        finished(tmp_path, name, {}, {"strategy": {"class_path": "CompressedDDP", "init_args": {"hook": hook}}})
    rows = group(find_runs([tmp_path]))
    assert [row.method for row in rows] == ["Backprop (EntropyCoded)", "Backprop (Half)", "Backprop (Uncompressed)"]


def test_an_entry_of_a_mapping_is_named_with_the_mapping(tmp_path):
    for size in (64, 128):
        finished(tmp_path, str(size), {"batch_sizes": {3: size}})
    rows = group(find_runs([tmp_path]))
    assert [row.method for row in rows] == ["Backprop (batch_sizes.3 128)", "Backprop (batch_sizes.3 64)"]


def test_backprop_rows_are_the_base_of_others_not_of_themselves(tmp_path):
    for loss in ("CrossEntropy", "ExpGB"):
        options = {"output_loss": {"class_path": f"losses.{loss}"}}
        finished(tmp_path, loss, options, images_per_second=1000.0)
        finished(tmp_path, f"{loss} in blocks", options, method="DecoupledGreedy", num_blocks=2)
    rows = {row.method: row for row in group(find_runs([tmp_path]))}
    assert rows["Backprop (ExpGB)"].base is None
    assert rows["DecoupledGreedy (ExpGB)"].base.first["name"] == "ExpGB"
    main([str(tmp_path)])
    assert "of several, the one of as many epochs that shares most settings" in (tmp_path / "report.md").read_text()


def test_a_setting_that_another_is_called_like_is_named_with_its_class(tmp_path):
    for decay in (1, 2):
        regularization, optimizer = {"weight_decay": decay}, {"init_args": {"weight_decay": 5e-4}}
        finished(tmp_path, str(decay), {"regularization": regularization, "optimizer": optimizer})
    assert [row.method for row in group(find_runs([tmp_path]))] == [
        "Backprop (regularization.weight_decay 1)",
        "Backprop (regularization.weight_decay 2)",
    ]


def test_times_of_other_threads_are_not_compared(runs):
    finished(runs, "dgl 4", method="DecoupledGreedy", num_blocks=4, device="CPU, 2 threads")
    base, same, other = group(find_runs([runs]))
    assert (base.base, same.ratio["images_per_second"]) == (None, pytest.approx(0.5))
    assert "images_per_second" not in other.ratio
    assert other.ratio["peak_activation_bytes"] == 1


def test_what_blocks_reached_whose_heads_are_gone_is_shown(tmp_path):
    metrics = {"test/top1": 0.8, "test/block2/top1": 0.8, "val/block1/top1": 0.6, "val/block2/top1": 0.7}
    settings = {"epochs_per_block": 1}
    finished(tmp_path, "layers", settings, method="Layerwise", num_blocks=2, metrics=metrics)
    main([str(tmp_path)])
    with (tmp_path / "report.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert (line["each block, %"], line["each block when it was done, validation images, %"]) == ("80.0", "60.0 70.0")
    assert "Where blocks learn one after the other" in (tmp_path / "report.md").read_text()


def test_a_repeated_run_is_said_to_be_left_out(runs, capsys):
    finished(runs, "dgl1 again", method="DecoupledGreedy", num_blocks=2, seed=1)
    main([str(runs)])
    assert "only the last by name counts: 1 left out" in capsys.readouterr().out


def test_no_column_of_many_blocks_is_cut_off(tmp_path, capsys):
    metrics = {f"{split}/block{k}/top1": k / 20 for split in ("test", "train_set") for k in range(1, 17)}
    finished(tmp_path, "deep", method="DecoupledGreedy", num_blocks=16, metrics=metrics | {"test/top1": 0.8})
    main([str(tmp_path)])
    each = " ".join(f"{5 * k:.1f}" for k in range(1, 17))
    line = next(line for line in capsys.readouterr().out.splitlines() if "DecoupledGreedy" in line)
    assert line.count(each) == 2
    assert "80.00" in line


def test_what_keeps_no_activations_has_no_figure_for_them(tmp_path):
    finished(tmp_path, "fitted", method="ClosedFormMLP", peak_activation_bytes=0)
    main([str(tmp_path)])
    assert "peak MiB" not in (tmp_path / "report.md").read_text()


def test_report_shows_groups_and_costs(grouped_runs):
    main([str(grouped_runs)])
    with (grouped_runs / "report.csv").open() as file:
        line = list(csv.DictReader(file))[2]
    assert (line["K"], line["G"], line["one group, %"], line["ensemble, %"]) == ("2", "4", "70.00", "82.00")
    assert line["slowest node, M MACs"] == "2.0 (×0.25)"
    assert (grouped_runs / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_one_block_of_groups_is_no_base(runs):
    (runs / "backprop" / "summary.json").unlink()
    finished(runs, "thin", method="NeuronGroups", num_groups=4)
    assert all(row.base is None for row in group(find_runs([runs])))


def probed(folder, name, num_blocks, seed=0, linear=0.5, **changes):
    """A run of a method that predicts no class, probed."""
    blocks = range(1, num_blocks + 1)
    metrics = {f"probe_lin100/block{k}/gap/top1": linear + k / 10 for k in blocks}
    metrics |= {f"probe_lin10/block{k}/gap/top1": 0.1 for k in blocks} | {"probe_lin100/block1/gap/lr": 0.3}
    metrics |= {f"knn_k200_t0.1/block{k}/gap/top1": 0.4 for k in blocks if k > 1}
    finished(folder, name, method="SimCLR", num_blocks=num_blocks, seed=seed, metrics=metrics, **changes)


def test_report_shows_probes_of_each_block(runs):
    probed(runs, "simclr 1", 2, seed=0, linear=0.5)
    probed(runs, "simclr 2", 2, seed=1, linear=0.6)
    main([str(runs)])
    with (runs / "report.csv").open() as file:
        table = list(csv.DictReader(file))
    assert table[2]["linear probe (100 epochs), each block, %"] == "65.0 75.0"
    assert table[2]["kNN (k200, t0.1), each block, %"] == "– 40.0"
    assert table[0]["linear probe (100 epochs), each block, %"] == "–"
    row = group(find_runs([runs]))[2]
    assert _depth_line(row) == ([0.5, 1.0], pytest.approx([65.0, 75.0]), "o--")


def test_a_method_without_labels_is_compared_with_its_own_single_block(runs, capsys):
    probed(runs, "simclr", 2, images_per_second=300.0)
    assert group(find_runs([runs]))[2].base is None
    probed(runs, "simclr whole", 1, images_per_second=600.0)
    rows = {(row.method, row.nodes[0]): row for row in group(find_runs([runs]))}
    assert rows["SimCLR", 2].ratio["images_per_second"] == pytest.approx(0.5)
    assert rows["DecoupledGreedy", 2].base.method == "Backprop"
    main([str(runs)])
    assert "of a method without labels, to its own run with one block" in (runs / "report.md").read_text()


def test_a_report_of_methods_without_labels_alone_is_drawn(tmp_path):
    probed(tmp_path, "simclr", 2)
    main([str(tmp_path)])
    assert (tmp_path / "cost.png").is_file()


def test_runs_of_other_epochs_are_rows_of_their_own(runs):
    finished(runs, "longer", epochs=3)
    rows = group(find_runs([runs]))
    assert sorted(row.first["epochs"] for row in rows if row.first["method"] == "Backprop") == [2, 3]


@pytest.mark.parametrize(("epochs", "base"), [(2, "backprop"), (3, "longer"), (4, "backprop")])
def test_the_base_has_as_many_epochs_if_there_is_one(epochs, base, tmp_path):
    for name, length in (("backprop", 2), ("longer", 3)):
        finished(tmp_path, name, epochs=length)
    finished(tmp_path, "layers", method="Layerwise", num_blocks=2, epochs=epochs)
    (layers,) = [row for row in group(find_runs([tmp_path])) if row.first["method"] == "Layerwise"]
    assert layers.base.first["name"] == base


def test_a_damaged_summary_is_named(runs):
    (runs / "backprop" / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"backprop/summary\.json is damaged"):
        find_runs([runs])


def test_a_damaged_configuration_is_named(runs):
    (runs / "backprop" / "config.yaml").write_text("model: [")
    with pytest.raises(RunError, match=r"backprop/config\.yaml is damaged"):
        find_runs([runs])


COMMON = {"network": "VGG", "dataset": "Digits", "batch_size": 8, "epochs": 1, "method": "M", "seed": 0}
COMMON |= {"num_blocks": 2, "metrics": {"test/top1": 0.5}}


def variants(*models):
    """What tells runs apart whose configurations have these arguments of the model."""
    runs = [line_of(COMMON, {"model": {"init_args": arguments}}) for arguments in models]
    return sorted(row.variant for row in group(pd.DataFrame(runs)))


def test_rows_are_named_by_what_tells_them_apart():
    contrastive = {"loss": {"class_path": "lightly.loss.NTXentLoss", "init_args": {"temperature": 0.5}}}
    barlow = {"loss": {"class_path": "lightly.loss.BarlowTwinsLoss", "init_args": {"lambda_param": 0.005}}}
    assert variants(contrastive, barlow) == ["BarlowTwinsLoss", "NTXentLoss"]
    colder = {"loss": {"class_path": "lightly.loss.NTXentLoss", "init_args": {"temperature": 0.2}}}
    assert variants(contrastive, colder) == ["temperature 0.2", "temperature 0.5"]
    # One has a part that the other lacks: told apart by that part's settings.
    difficult = {"difficulty": {"mode": "rising"}}
    assert variants(contrastive | {"difficulty": None}, contrastive | difficult) == ["difficulty None", "mode rising"]


def test_settings_whose_names_end_alike_are_told_apart():
    def run(optimizer, regularization):
        decays = {"optimizer": optimizer, "regularization": regularization}
        return {name: {"init_args": {"weight_decay": decay}} for name, decay in decays.items()}

    assert variants(run(0.1, 1), run(0.2, 2)) == [
        "optimizer.weight_decay 0.1, regularization.weight_decay 1",
        "optimizer.weight_decay 0.2, regularization.weight_decay 2",
    ]


def test_the_same_run_twice_counts_as_one_seed():
    runs = [line_of(COMMON | {"seed": seed, "name": name}, {}) for name, seed in (("a", 0), ("b", 1), ("c", 1))]
    (row,) = group(pd.DataFrame(runs))
    assert list(row.runs["name"]) == ["a", "c"]


@pytest.mark.parametrize("command", ["report", "suite"])
def test_no_torch_is_imported(command, runs, tmp_path):
    (tmp_path / "study.yaml").write_text("runs: [{config: nowhere.yaml, name: backprop}]")
    lines = {
        "report": f"from experiments.report.command import main; main(['{runs}'])",
        "suite": f"from experiments.suite import main; main(['{tmp_path}/study.yaml', '--runs={tmp_path}'], None)",
    }
    (tmp_path / "study").mkdir(exist_ok=True)
    (runs / "backprop").rename(tmp_path / "study" / "backprop")  # finished: nothing is left to do but to report
    program = f"import sys; {lines[command]}; assert not {{'torch', 'lightning'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
